package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// renderText is render on values that are given as YAML.
func renderText(t *testing.T, text string) []object {
	t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	manifest, err := Render(chartDir, testRelease, values)
	if err != nil {
		t.Fatal(err)
	}
	checkObjects(t, manifest)
	return decode(t, manifest)
}

// find returns the object of a type and a name, or nil.
func find[T any](objects []object, name string) *T {
	for _, o := range objects {
		if typed, ok := any(o.typed).(*T); ok && o.name == name {
			return typed
		}
	}
	return nil
}

// callers says who a NetworkPolicy lets reach a port of the pods that it selects.
func callers(policy *networkingv1.NetworkPolicy, port string) []string {
	var list []string
	for _, rule := range policy.Spec.Ingress {
		if !slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.StrVal == port }) {
			continue
		}
		if len(rule.From) == 0 {
			list = append(list, "everybody")
		}
		for _, from := range rule.From {
			switch {
			case from.IPBlock != nil:
				list = append(list, from.IPBlock.CIDR)
			case from.PodSelector != nil:
				list = append(list, from.PodSelector.MatchLabels["app.kubernetes.io/component"])
			case from.NamespaceSelector != nil:
				list = append(list, "namespaces")
			}
		}
	}
	return list
}

// TestGateway: with a gateway, peers reach it and it reaches the nodes; without one, peers reach the
// nodes and nothing of a gateway is there.
func TestGateway(t *testing.T) {
	const peers = "site: {name: site-a, peers: {site-b: 'b.example.com:9443', site-c: ''}}\ntls: {existingSecret: " +
		"site-a-tls}\n"
	const none = "site: {name: site-a}\ntls: {existingSecret: site-a-tls}\n"
	const policies = "networkPolicy: {peerCIDRs: [10.2.0.0/16], metricsFrom: [{namespaceSelector: {}}]}\n"
	for _, tt := range []struct {
		name, values string
		gateway      bool
		replicas     int32
		retired      []string
		link         []string // who may call the nodes' port of it
		finders      []string // who may look for the nodes
	}{
		{"peers", peers + policies, true, 2, nil, []string{"gateway", "node"}, []string{"controller", "gateway"}},
		{"one replica, a low port, retired nodes",
			peers + policies +
				"replication: {port: 443, gateway: {replicas: 1}}\ncontroller: {retiredNodes: [node-7, node-8]}\n",
			true, 1, []string{"node-7", "node-8"}, []string{"gateway", "node"}, []string{"controller", "gateway"}},
		{"the nodes' own addresses as well", peers + policies + "replication: {hostPort: 9443}\n",
			true, 2, nil, []string{"gateway", "node", "10.2.0.0/16"}, []string{"controller", "gateway"}},
		{"without a controller", peers + policies + "controller: {mode: node}\n", true, 2, nil, []string{"gateway", "node"},
			[]string{"gateway"}},
		{"switched off", peers + policies + "replication: {gateway: {enabled: false}}\n", false, 0, nil,
			[]string{"10.2.0.0/16"}, []string{"controller"}},
		{"switched off, peers from everywhere", peers + "replication: {gateway: {enabled: false}}\n",
			false, 0, nil, []string{"everybody"}, []string{"controller"}},
		{"no peers", none + policies, false, 0, nil, []string{"10.2.0.0/16"}, []string{"controller"}},
		{"no certificate", "site: {name: site-a}\n" + policies, false, 0, nil, nil, []string{"controller"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := renderText(t, tt.values)
			node := find[appsv1.DaemonSet](objects, "slipstream-node").Spec.Template
			replicator := (workload{pod: node}).container("replicator")
			if got := callers(find[networkingv1.NetworkPolicy](objects, "slipstream-node"), "link"); !slices.Equal(got,
				tt.link) {
				t.Errorf("the nodes' port of the link is open to %q, want %q", got, tt.link)
			}
			if got := finders(t, objects); !slices.Equal(got, tt.finders) {
				t.Errorf("%q may look for the nodes, want %q", got, tt.finders)
			}
			name, named := argument(replicator, "node")
			if named != tt.gateway || named && (name != "$(NODE_NAME)" || !hasEnv(replicator, "NODE_NAME", "spec.nodeName")) {
				t.Errorf("the replicator is told its name %q (%t) with environment %v", name, named, replicator.Env)
			}
			if address, given := argument(replicator, "site-node"); given != tt.gateway ||
				given && !reaches(objects, address, replicator, node.Labels) {
				t.Errorf("the replicators reach each other at %q (%t)", address, given)
			}
			front := map[bool]string{true: "gateway", false: "node"}[tt.gateway]
			service := find[corev1.Service](objects, "slipstream-link")
			if (service != nil) != (tt.link != nil) {
				t.Errorf("service of the link: %v", service)
			} else if service != nil && service.Spec.Selector["app.kubernetes.io/component"] != front {
				t.Errorf("peers are sent to %v, want %s", service.Spec.Selector, front)
			}
			if !tt.gateway {
				for _, o := range objects {
					if strings.Contains(o.name, "gateway") || o.name == "slipstream-link-nodes" {
						t.Errorf("%s %s is there without a gateway", o.kind, o.name)
					}
				}
				return
			}
			checkGateway(t, objects, node, tt.retired)
			deployment := find[appsv1.Deployment](objects, "slipstream-gateway")
			budget := find[policyv1.PodDisruptionBudget](objects, "slipstream-gateway")
			if *deployment.Spec.Replicas != tt.replicas || (budget != nil) != (tt.replicas > 1) {
				t.Errorf("%d replicas, want %d, with budget %v", *deployment.Spec.Replicas, tt.replicas, budget)
			}
		})
	}
}

// reaches reports whether an address is that of a headless Service that selects the pods, also those that are not
// ready, and whether a container of them listens there.
func reaches(objects []object, address string, c *corev1.Container, labels map[string]string) bool {
	host, port, _ := strings.Cut(address, ":")
	name, suffix, _ := strings.Cut(host, ".")
	service := find[corev1.Service](objects, name)
	listen, _ := argument(c, "listen")
	if service == nil || suffix != testRelease.Namespace+".svc" || listen != ":"+port {
		return false
	}
	for key, value := range service.Spec.Selector {
		if labels[key] != value {
			return false
		}
	}
	return service.Spec.ClusterIP == corev1.ClusterIPNone && service.Spec.PublishNotReadyAddresses
}

// TestSiteNodes: the addresses at which the nodes reach each other can be given.
func TestSiteNodes(t *testing.T) {
	objects := renderText(t, "site: {name: site-a, peers: {site-b: ''}}\ntls: {existingSecret: site-a-tls}\n"+
		"replication: {siteNodes: ['10.0.0.1:9443', 'nodes.example.com:9443']}\n")
	replicator := (workload{pod: find[appsv1.DaemonSet](objects, "slipstream-node").Spec.Template}).container("replicator")
	var got []string
	for _, arg := range replicator.Args {
		if address, ok := strings.CutPrefix(arg, "--site-node="); ok {
			got = append(got, address)
		}
	}
	if diff := cmp.Diff([]string{"10.0.0.1:9443", "nodes.example.com:9443"}, got); diff != "" {
		t.Error(diff)
	}
}

// checkGateway: the gateway takes the peers' calls, knows who may call, and finds the nodes.
func checkGateway(t *testing.T, objects []object, node corev1.PodTemplateSpec, retired []string) {
	t.Helper()
	pod := find[appsv1.Deployment](objects, "slipstream-gateway").Spec.Template
	gateway := (workload{pod: pod}).container("gateway")
	checkRoute(t, objects, node, "replicator", "listen", "link", gateway)
	if find[corev1.ServiceAccount](objects, pod.Spec.ServiceAccountName) == nil ||
		pod.Spec.ServiceAccountName != "slipstream-gateway" {
		t.Errorf("it runs as %q", pod.Spec.ServiceAccountName)
	}
	service := find[corev1.Service](objects, "slipstream-link").Spec
	for key, value := range service.Selector {
		if pod.Labels[key] != value {
			t.Errorf("peers are not sent to it: %s=%s", key, value)
		}
	}
	listen, _ := argument(gateway, "listen")
	address, _ := argument((workload{pod: node}).container("replicator"), "listen")
	if listen != address || service.Ports[0].TargetPort.StrVal != "link" {
		t.Errorf("it listens on %s, the nodes on %s, the service calls %v", listen, address, service.Ports)
	}
	for _, tt := range []struct {
		flag string
		want []string
	}{
		{"site", []string{"site-a"}}, {"peer", []string{"site-b", "site-c"}}, {"retired-node", retired},
		{"tls-dir", []string{"/etc/slipstream/tls"}},
	} {
		var got []string
		for _, arg := range gateway.Args {
			if value, ok := strings.CutPrefix(arg, "--"+tt.flag+"="); ok {
				got = append(got, value)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("--%s:\n%s", tt.flag, diff)
		}
	}
	// Its user is not root: it reads the key as the group, and cannot listen everywhere by itself.
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "tls" })
	s := pod.Spec.Volumes[i].Secret
	if s == nil || s.SecretName != "site-a-tls" || *s.DefaultMode != 0o440 || *pod.Spec.SecurityContext.FSGroup == 0 {
		t.Errorf("its certificate: %v", pod.Spec.Volumes)
	}
	if low := gateway.Ports[0].ContainerPort < 1024; low != (len(pod.Spec.SecurityContext.Sysctls) == 1) {
		t.Errorf("port %d with %v", gateway.Ports[0].ContainerPort, pod.Spec.SecurityContext.Sysctls)
	}
	policy := find[networkingv1.NetworkPolicy](objects, "slipstream-gateway")
	if got := callers(policy, "link"); !slices.Equal(got, []string{"10.2.0.0/16"}) {
		t.Errorf("it is open to %q", got)
	}
	metrics := find[corev1.Service](objects, "slipstream-gateway-metrics").Spec
	got := callers(policy, metrics.Ports[0].TargetPort.StrVal)
	if !slices.Equal(got, []string{"namespaces"}) || metrics.Selector["app.kubernetes.io/component"] != "gateway" {
		t.Errorf("its metrics are open to %q by %v", got, metrics)
	}
}

// finders are the components that may read the Nodes and the EndpointSlices, each by roles of its own.
func finders(t *testing.T, objects []object) []string {
	t.Helper()
	reads := func(rules []rbacv1.PolicyRule, group, resource string) bool {
		return len(rules) == 1 && cmp.Equal(rules[0], rbacv1.PolicyRule{
			APIGroups: []string{group}, Resources: []string{resource}, Verbs: []string{"get", "list", "watch"}})
	}
	var list []string
	for _, component := range []string{"controller", "gateway", "node", "keeper"} {
		name := "slipstream-" + component
		role, all := find[rbacv1.Role](objects, name), find[rbacv1.ClusterRole](objects, name)
		binding := find[rbacv1.RoleBinding](objects, name)
		if role == nil && all == nil && binding == nil {
			continue
		}
		if role == nil || all == nil || !reads(role.Rules, "discovery.k8s.io", "endpointslices") ||
			!reads(all.Rules, "", "nodes") {
			t.Errorf("roles of %s: %v and %v", component, role, all)
		}
		if binding == nil || binding.RoleRef.Name != name || len(binding.Subjects) != 1 || binding.Subjects[0].Name != name ||
			!bound(objects, component, name) {
			t.Errorf("%s does not have its roles: %v", component, binding)
		}
		list = append(list, component)
	}
	return list
}

func hasEnv(c *corev1.Container, name, field string) bool {
	return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == name && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == field
	})
}
