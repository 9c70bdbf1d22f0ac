//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// linkPort is where the nodes' addresses lead to the site's gateways, nodePort where each leads to its replicator: the
// local clusters have no DNS by which the replicators of a site could find each other.
const (
	linkPort = 30943
	nodePort = 9943
)

// metricsSecret has the token of who reads metrics. The chart makes it.
const metricsSecret = "slipstream-metrics-token"

// values of the chart for a site; see images.sh for the names of the images. A driver knows its loop devices by the
// paths of their files, and the sites of one machine have the same volumes, so their pools have different paths.
const values = `
site: {name: site-%[1]s, peers: {site-%[2]s: "%[3]s"}}
pool: {path: /var/lib/slipstream/pool-%[1]s}
journal: {path: /var/lib/slipstream/journal}
replication:
  service: {type: NodePort, nodePort: 30943}
  compression: none
  hostPort: 9943
  siteNodes: [%[4]s]
tls: {existingSecret: site-tls}
capacity: {pollInterval: 5s}
imagePullPolicy: Never
node: {maxUnavailable: 1}
sidecars: {snapshotter: {enabled: true}}
images:
  node: {repository: slipstream.test/slipstream-node, tag: dev}
  keeper: {repository: slipstream.test/slipstream-node, tag: dev}
  controller: {repository: slipstream.test/slipstream-controller, tag: dev}
  provisioner: {repository: slipstream.test/csi-provisioner, tag: v6.3.0}
  resizer: {repository: slipstream.test/csi-resizer, tag: v2.3.0}
  snapshotter: {repository: slipstream.test/csi-snapshotter, tag: v8.7.0}
  nodeDriverRegistrar: {repository: slipstream.test/csi-node-driver-registrar, tag: test}
  livenessProbe: {repository: slipstream.test/livenessprobe, tag: test}
storageClasses:
  - name: plain
  - name: plain-xfs
    parameters: {csi.storage.k8s.io/fstype: xfs}
  - name: replicable
    parameters: {slipstream.dev/replicable: "true"}
  - name: replicable-xfs
    parameters: {slipstream.dev/replicable: "true", csi.storage.k8s.io/fstype: xfs}
  - name: shop
    parameters:
      slipstream.dev/remote: site-%[2]s
      slipstream.dev/consistency-group: shop
      slipstream.dev/journal-size: 64Mi
  - name: verify
    parameters:
      slipstream.dev/remote: site-%[2]s
      slipstream.dev/consistency-group: verify
      slipstream.dev/journal-size: 64Mi
  - name: back
    parameters:
      slipstream.dev/remote: site-%[2]s
      slipstream.dev/consistency-group: back
      slipstream.dev/journal-size: 64Mi
`

// nodeValues come on top where the sidecars are in every node's pod. In a Deployment is the default, with certificates
// that the chart makes.
const nodeValues = `
controller: {mode: node}
`

// central says whether the sidecars are in a Deployment (SLIPSTREAM_E2E_CONTROLLER=controller) or in every node's pod
// (node).
func central() bool { return os.Getenv("SLIPSTREAM_E2E_CONTROLLER") == "controller" }

// install installs the chart at both sites, and looks at what Kubernetes then knows of the driver.
func (s *suite) install(t *testing.T, shown func(string, ...any)) {
	authority, err := tlsfiles.NewAuthority(t.TempDir(), "e2e")
	if err != nil {
		t.Fatal(err)
	}
	s.authority = authority
	for _, c := range []cluster{s.a, s.b} {
		installSnapshots(t, c)
		s.installAt(t, c, authority)
	}
	for _, c := range []cluster{s.a, s.b} {
		c.ready(t, system, "app.kubernetes.io/component=keeper")
		c.ready(t, system, "app.kubernetes.io/component=node")
		c.ready(t, system, "app.kubernetes.io/component=gateway")
		if central() {
			c.ready(t, system, "app.kubernetes.io/component=controller")
		}
		s.registered(t, c)
	}
	shown("chart installed at both sites; CSIDriver, CSINode and capacity objects of %d nodes are right",
		len(s.nodes("a"))+len(s.nodes("b")))
}

func (s *suite) installAt(t *testing.T, c cluster, authority *tlsfiles.Authority) {
	peer := map[string]cluster{"a": s.b, "b": s.a}[c.site]
	// What an earlier run left that was broken off.
	c.run(t, "delete", "namespace", namespace, "--ignore-not-found")
	c.run(t, append([]string{"uncordon"}, s.nodes(c.site)...)...)
	for _, ns := range []string{system, namespace} {
		c.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+ns+"}}")
	}
	issue(t, c, authority, "site-tls", "site-"+c.site, 24*time.Hour)
	file := filepath.Join(t.TempDir(), "values.yaml")
	var siteNodes []string
	for _, node := range s.nodes(c.site) {
		siteNodes = append(siteNodes, fmt.Sprintf("%q", fmt.Sprintf("%s:%d", s.address(node), nodePort)))
	}
	text := fmt.Sprintf(values, c.site, peer.site, fmt.Sprintf("%s:%d", s.address(s.nodes(peer.site)[0]), linkPort),
		strings.Join(siteNodes, ", "))
	if !central() {
		text += nodeValues
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := command(ctx, "",
		append(c.helm(c.site), "upgrade", "--install", "slipstream", "../../deploy/charts/slipstream", "-n", system,
			"-f", file)...); err != nil {
		t.Fatal(err)
	}
}

// issue puts a certificate into a Secret that the chart is given.
func issue(t *testing.T, c cluster, authority *tlsfiles.Authority, secret, name string, validFor time.Duration) {
	t.Helper()
	dir := t.TempDir()
	if err := authority.IssueSite(dir, name, nil, validFor); err != nil {
		t.Fatal(err)
	}
	manifest := c.run(t, "-n", system, "create", "secret", "generic", secret, "--dry-run=client", "-o", "yaml",
		"--from-file="+filepath.Join(dir, tlsfiles.CAFile), "--from-file="+filepath.Join(dir, tlsfiles.CertFile),
		"--from-file="+filepath.Join(dir, tlsfiles.KeyFile))
	c.apply(t, manifest)
}

// secretData is what is in a site's Secret, decoded.
func (s *suite) secretData(t *testing.T) map[string]any {
	t.Helper()
	var secret struct{ Data map[string][]byte }
	if err := json.Unmarshal([]byte(s.a.run(t, "-n", system, "get", "secret", "site-tls", "-o", "json")),
		&secret); err != nil {
		t.Fatal(err)
	}
	data := map[string]any{}
	for name, text := range secret.Data {
		data[name] = string(text)
	}
	return data
}

// registered waits until every node has the driver with its topology, and a capacity object for every class.
func (s *suite) registered(t *testing.T, c cluster) {
	d := c.get(t, "csidriver", driver)
	if field(d.Spec, "attachRequired") != "false" || field(d.Spec, "storageCapacity") != "true" {
		t.Errorf("CSIDriver: %v", d.Spec)
	}
	for _, node := range s.nodes(c.site) {
		eventually(t, "node "+node+" has the driver", func() error {
			drivers, _ := c.get(t, "csinode", node).Spec["drivers"].([]any)
			for _, one := range drivers {
				if m, ok := one.(map[string]any); ok && m["name"] == driver && m["nodeID"] == node &&
					fmt.Sprint(m["topologyKeys"]) == "[topology.slipstream.dev/node]" {
					return nil
				}
			}
			return fmt.Errorf("CSINode has %v", drivers)
		})
		eventually(t, "the capacity of "+node+" is published", func() error {
			classes := map[string]bool{}
			for _, o := range c.list(t, "-n", system, "csistoragecapacities") {
				if o.NodeTopology.MatchLabels["topology.slipstream.dev/node"] == node && o.Capacity != "" && o.Capacity != "0" {
					classes[o.StorageClassName] = true
				}
			}
			if !classes["plain"] || !classes["shop"] {
				return fmt.Errorf("only for %v", classes)
			}
			return nil
		})
	}
}

// nodePod is the name of the pod of a component on a node.
func (c cluster) nodePod(t *testing.T, component, node string) string {
	t.Helper()
	var name string
	eventually(t, "there is a pod "+component+" on "+node, func() error {
		pods := c.list(t, "-n", system, "pods", "-l", "app.kubernetes.io/component="+component, "--field-selector",
			"spec.nodeName="+node)
		for _, p := range pods {
			if p.Metadata.DeletionTimestamp == "" {
				name = p.Metadata.Name
				return nil
			}
		}
		return errors.New("there is none")
	})
	return name
}
