//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// volumeOf is a volume that does not exist: of a driver, on a node.
func volumeOf(name, driver, node string) string {
	return fmt.Sprintf(
		`{apiVersion: v1, kind: PersistentVolume, metadata: {name: %s}, spec: {
  capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain,
  csi: {driver: %s, volumeHandle: none}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [
  {key: topology.slipstream.dev/node, operator: In, values: [%s]}]}]}}}}`, name, driver, node)
}

// accounts shows that the API server keeps the sidecars' account to this driver's volumes, and where every node has
// that account, to the node's.
func (s *suite) accounts(t *testing.T, shown func(string, ...any)) {
	nodes := s.nodes("a")
	account := map[bool]string{true: "controller", false: "node"}[central()]
	as := []string{"--as=system:serviceaccount:" + system + ":slipstream-" + account,
		"--as-user-extra=authentication.kubernetes.io/node-name=" + nodes[0]}
	want := func(what, manifest string, refusal string, args ...string) {
		t.Helper()
		out, err := s.a.try(manifest, append(args, as...)...)
		if refusal == "" && err != nil || refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)) {
			t.Errorf("%s: %v %s, want %q", what, err, out, refusal)
		}
	}
	other := map[bool]string{true: "", false: "of that node only"}[central()]
	s.a.apply(t, volumeOf("foreign", "csi.example.com", nodes[0]))
	want("delete another driver's volume", "", "volumes of "+driver, "delete", "pv", "foreign", "--wait=false")
	want("make another driver's volume", volumeOf("foreign-2", "csi.example.com", nodes[0]), "volumes of "+driver,
		"create", "-f", "-")
	want("make its volume", volumeOf("own", driver, nodes[0]), "", "create", "-f", "-")
	want("make another node's volume", volumeOf("own-2", driver, nodes[1]), other, "create", "-f", "-")
	want("delete its volume", "", "", "delete", "pv", "own", "--wait=false")
	want("read a Secret", "", "forbidden", "-n", system, "get", "secret", metricsSecret)
	want("read pods", "", "forbidden", "get", "pods", "-A")
	s.a.run(t, "delete", "pv", "foreign", "own", "own-2", "--ignore-not-found")
	if central() {
		for _, p := range s.a.list(t, "-n", system, "pods", "-l", "app.kubernetes.io/component in (node, keeper)") {
			if field(p.Spec, "automountServiceAccountToken") != "false" {
				t.Errorf("pod %s has a token of the API server", p.Metadata.Name)
			}
		}
		shown("the controller's account is kept to this driver's volumes; the nodes' pods have no token")
		return
	}
	shown("a node's account is kept to volumes of this driver on that node")
}
