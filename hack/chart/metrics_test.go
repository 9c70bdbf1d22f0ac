package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// programs are those of this project that serve metrics.
var programs = []string{"csi-driver", "replicator", "gateway", "operator"}

// TestMetricsAccess: metrics name claims. A program serves them beyond its pod for a token that is mounted into it, and
// to everybody only where that was asked for.
func TestMetricsAccess(t *testing.T) {
	const peers = "site: {name: site-a, peers: {site-b: 'b.example.com:9443'}}\ntls: {existingSecret: site-a-tls}\n"
	const central = "controller: {mode: controller, tls: {nodeSecret: nodes, controllerSecret: controller}}\n"
	for _, tt := range []struct {
		name, values string
		secret       string
		open         bool
	}{
		{"a token that is made", peers + central, "slipstream-metrics-token", false},
		{"a token", peers + central + "metrics: {tokenSecret: readers}\n", "readers", false},
		{"open", peers + central + "metrics: {open: true}\n", "", true},
		{"off", peers + central + "metrics: {enabled: false, tokenSecret: readers}\n", "", false},
		{"off, open", peers + central + "metrics: {enabled: false, open: true}\n", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found := 0
			for _, w := range workloads(renderText(t, tt.values)) {
				for _, name := range programs {
					c := w.container(name)
					if c == nil {
						continue
					}
					found++
					file, _ := argument(c, "metrics-token-file")
					if _, open := argument(c, "metrics-open"); open != tt.open || (file != "") != (tt.secret != "") {
						t.Errorf("%s/%s: open %t, token in %q", w.id, name, open, file)
					}
					for _, v := range w.pod.Spec.Volumes {
						if v.Name == "metrics-token" && (v.Secret.Optional == nil || !*v.Secret.Optional) {
							t.Errorf("%s does not start without the token", w.id)
						}
					}
					if got := secretAt(w, c, file); got != tt.secret {
						t.Errorf("%s/%s: %q is of Secret %q, want %q", w.id, name, file, got, tt.secret)
					}
				}
			}
			if found != 5 {
				t.Errorf("%d programs with metrics, want 5", found)
			}
		})
	}
}

// secretAt is the Secret that a file of a container is from; "" where it is from none.
func secretAt(w workload, c *corev1.Container, file string) string {
	for _, m := range c.VolumeMounts {
		if m.MountPath != filepath.Dir(file) || !m.ReadOnly {
			continue
		}
		for _, v := range w.pod.Spec.Volumes {
			if v.Name == m.Name && v.Secret != nil {
				return v.Secret.SecretName
			}
		}
	}
	return ""
}

// TestPolicies: each pod of the chart has a policy unless they are switched off, and no port of metrics is open to
// a client that is not named.
func TestPolicies(t *testing.T) {
	const peers = "site: {name: site-a, peers: {site-b: 'b.example.com:9443'}}\ntls: {existingSecret: " +
		"site-a-tls}\nsidecars: {snapshotter: {enabled: true}}\n"
	const central = "controller: {mode: controller, tls: {nodeSecret: nodes, controllerSecret: controller}}\n"
	const node = "controller: {mode: node}\n"
	const from = "networkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {team: watch}}}]}\n"
	for _, tt := range []struct {
		name, values string
		policies     bool
		readers      []string
	}{
		{"controller", peers + central, true, nil},
		{"node", peers + node, true, nil},
		{"readers", peers + central + from, true, []string{"namespaces"}},
		{"readers, node", peers + node + from, true, []string{"namespaces"}},
		{"open metrics", peers + central + "metrics: {open: true}\n", true, nil},
		{"no metrics", peers + central + from + "metrics: {enabled: false}\n", true, nil},
		{"switched off", peers + central + "networkPolicy: {enabled: false}\n", false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := renderText(t, tt.values)
			for _, w := range workloads(objects) {
				of := policies(objects, w)
				if (len(of) > 0) != tt.policies {
					t.Errorf("%s has %d policies", w.id, len(of))
				}
				for _, p := range of {
					if !slices.Equal(p.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
						t.Errorf("%s: %s is for %v", w.id, p.Name, p.Spec.PolicyTypes)
					}
					for _, c := range w.pod.Spec.Containers {
						for _, port := range c.Ports {
							if got := callers(p, port.Name); strings.HasPrefix(port.Name, "m-") && !slices.Equal(got, tt.readers) {
								t.Errorf("%s/%s: %s is open to %q, want %q", w.id, c.Name, port.Name, got, tt.readers)
							}
						}
					}
				}
			}
		})
	}
}

// policies are those that select a workload's pods.
func policies(objects []object, w workload) (list []*networkingv1.NetworkPolicy) {
	for _, o := range objects {
		p, ok := o.typed.(*networkingv1.NetworkPolicy)
		if ok && labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels).Matches(labels.Set(w.pod.Labels)) {
			list = append(list, p)
		}
	}
	return list
}
