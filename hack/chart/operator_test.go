package main

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestOperator: the operator reaches the nodes as the controller does, and only with them; what it may write are
// objects of its own kinds.
func TestOperator(t *testing.T) {
	const site = "site: {name: site-a}\n"
	for _, tt := range []struct {
		name, values   string
		operator, crds bool
	}{
		{"default", "", true, true},
		{"crds by other means", "operator: {crds: false}\n", true, false},
		{"off", "operator: {enabled: false}\n", false, false},
		{"without a port of the nodes", "controller: {mode: node}\n", false, false},
		{"without replicators", "replication: {enabled: false}\n", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := renderText(t, site+tt.values)
			crds := 0
			for _, o := range objects {
				if o.kind == "CustomResourceDefinition" {
					crds++
				} else if strings.Contains(o.name, "operator") && !tt.operator {
					t.Errorf("%s %s is there", o.kind, o.name)
				}
			}
			if (crds == 3) != tt.crds {
				t.Errorf("%d CustomResourceDefinitions", crds)
			}
			if !tt.operator {
				return
			}
			pod := find[appsv1.Deployment](objects, "slipstream-operator").Spec.Template
			w := workload{id: "operator", pod: pod}
			c := w.container("operator")
			if secret := secretAt(w, c, "/etc/slipstream/controller-tls/tls.crt"); secret != "slipstream-controller-made-tls" {
				t.Errorf("certificate of Secret %q", secret)
			}
			if service, _ := argument(c, "node-service"); service != "slipstream-system/slipstream-nodes" {
				t.Errorf("node service %q", service)
			}
			policy := find[networkingv1.NetworkPolicy](objects, "slipstream-node")
			if from := callers(policy, "csi"); !slices.Equal(from, []string{"controller", "operator"}) {
				t.Errorf("the port of the nodes is open to %v", from)
			}
			for _, rule := range find[rbacv1.ClusterRole](objects, "slipstream-operator-objects").Rules {
				for _, verb := range rule.Verbs {
					own := slices.Equal(rule.APIGroups, []string{"slipstream.dev"}) || slices.Equal(rule.Resources, []string{"events"})
					if !own && !slices.Contains([]string{"get", "list", "watch"}, verb) {
						t.Errorf("may %s %v", verb, rule.Resources)
					}
				}
			}
			leader := find[rbacv1.Role](objects, "slipstream-operator-leader")
			if !slices.Equal(leader.Rules[0].ResourceNames, []string{"slipstream-operator"}) {
				t.Errorf("leases %v", leader.Rules[0].ResourceNames)
			}
		})
	}
}
