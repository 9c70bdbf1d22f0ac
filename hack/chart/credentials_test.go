package main

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestCredentials: what the pods mount and the values do not give is made before the pods, by a Job that may do no
// more; and only what ends is renewed.
func TestCredentials(t *testing.T) {
	const site = "site: {name: site-a}\n"
	const given = "controller: {tls: {nodeSecret: nodes, controllerSecret: controller}}\n"
	for _, tt := range []struct {
		name, values string
		made         []string // by the Job
		renewed      []string // by the CronJob
		node, ctrl   string   // the Secrets that the two sides mount
	}{
		{"nothing but a name", site,
			[]string{"slipstream-node-made-tls", "slipstream-controller-made-tls", "slipstream-metrics-token"},
			[]string{"slipstream-node-made-tls", "slipstream-controller-made-tls", "slipstream-metrics-token"},
			"slipstream-node-made-tls", "slipstream-controller-made-tls"},
		{"certificates are given", site + given, []string{"slipstream-metrics-token"}, nil, "nodes", "controller"},
		{"cert-manager", site + "controller: {tls: {certManager: {enabled: true, issuerRef: {name: i}}}}\n",
			[]string{"slipstream-metrics-token"}, nil, "slipstream-node-tls", "slipstream-controller-tls"},
		{"the token is given", site + "metrics: {tokenSecret: token}\n",
			[]string{"slipstream-node-made-tls", "slipstream-controller-made-tls"},
			[]string{"slipstream-node-made-tls", "slipstream-controller-made-tls"}, "slipstream-node-made-tls",
			"slipstream-controller-made-tls"},
		{"all is given", site + given + "metrics: {tokenSecret: token}\n", nil, nil, "nodes", "controller"},
		{"no controller", site + "controller: {mode: node}\n", []string{"slipstream-metrics-token"}, nil, "", ""},
		{"no controller, no metrics", site + "controller: {mode: node}\nmetrics: {enabled: false}\n", nil, nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := renderText(t, tt.values)
			job, cron := find[batchv1.Job](objects, "slipstream-credentials-install"), find[batchv1.CronJob](objects,
				"slipstream-credentials")
			if job != nil {
				checkMaker(t, objects, job.Spec.Template, tt.made, "create")
				// Before everything else, and with its rights gone afterwards.
				for _, o := range []map[string]string{job.Annotations, find[corev1.ServiceAccount](objects, job.Name).Annotations,
					find[rbacv1.Role](objects, job.Name).Annotations, find[rbacv1.RoleBinding](objects, job.Name).Annotations} {
					if o["helm.sh/hook"] != "pre-install,pre-upgrade" ||
						!strings.Contains(o["helm.sh/hook-delete-policy"], "hook-succeeded") {
						t.Errorf("annotations %v", o)
					}
				}
			}
			if cron != nil {
				checkMaker(t, objects, cron.Spec.JobTemplate.Spec.Template, tt.renewed, "")
			}
			if (job != nil) != (tt.made != nil) || (cron != nil) != (tt.renewed != nil) {
				t.Errorf("there is a Job: %t, a CronJob: %t", job != nil, cron != nil)
			}
			node := find[appsv1.DaemonSet](objects, "slipstream-node").Spec.Template
			if got := certificates(node, "csi-driver"); got != tt.node {
				t.Errorf("the nodes mount %q, want %q", got, tt.node)
			}
			if deployment := find[appsv1.Deployment](objects, "slipstream-controller"); deployment != nil {
				if got := certificates(deployment.Spec.Template, "csi-driver"); got != tt.ctrl {
					t.Errorf("the controller mounts %q, want %q", got, tt.ctrl)
				}
			} else if tt.ctrl != "" {
				t.Error("there is no controller")
			}
		})
	}
}

// certificates is the Secret that a container's --tls-dir is from.
func certificates(pod corev1.PodTemplateSpec, container string) string {
	w := workload{pod: pod}
	dir, _ := argument(w.container(container), "tls-dir")
	if dir == "" {
		return ""
	}
	return secretAt(w, w.container(container), dir+"/tls.crt")
}

// checkMaker: a pod names these Secrets, and its account may read and change them, and nothing else but what more says.
func checkMaker(t *testing.T, objects []object, pod corev1.PodTemplateSpec, secrets []string, more string) {
	t.Helper()
	c := (workload{pod: pod}).container("credentials")
	var named []string
	for _, flag := range []string{"node-secret", "controller-secret", "metrics-secret"} {
		if name, ok := argument(c, flag); ok {
			named = append(named, name)
		}
	}
	if !slices.Equal(named, secrets) {
		t.Errorf("it makes %q, want %q", named, secrets)
	}
	if mode, _ := argument(c, "mode"); mode != "credentials" {
		t.Errorf("its mode is %s", mode)
	}
	account := pod.Spec.ServiceAccountName
	binding, role := find[rbacv1.RoleBinding](objects, account), find[rbacv1.Role](objects, account)
	if binding == nil || binding.RoleRef.Name != account || binding.Subjects[0].Name != account {
		t.Fatalf("%s has no role: %v", account, binding)
	}
	want := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: secrets,
		Verbs: []string{"get", "update"}}}
	if more != "" {
		want = append(want, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{more}})
	}
	if !equalRules(role.Rules, want) {
		t.Errorf("%s may %v", account, role.Rules)
	}
	for _, o := range objects {
		if b, ok := o.typed.(*rbacv1.ClusterRoleBinding); ok && b.Subjects[0].Name == account {
			t.Errorf("%s has ClusterRole %s", account, b.RoleRef.Name)
		}
	}
}

func equalRules(a, b []rbacv1.PolicyRule) bool {
	return slices.EqualFunc(a, b, func(x, y rbacv1.PolicyRule) bool { return x.String() == y.String() })
}
