//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// snapshotController is upstream's, with one replica and this machine's image; its rights and the CRDs are upstream's
// files. Where a snapshotter runs on every node (--enable-distributed-snapshotting), it also has to read nodes, which
// upstream's file has as a comment.
const snapshotController = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: snapshot-controller-nodes}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: snapshot-controller-nodes}
subjects: [{kind: ServiceAccount, name: snapshot-controller, namespace: kube-system}]
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: snapshot-controller-nodes}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: snapshot-controller, namespace: kube-system}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: snapshot-controller}}
  template:
    metadata: {labels: {app.kubernetes.io/name: snapshot-controller}}
    spec:
      serviceAccountName: snapshot-controller
      containers:
      - name: snapshot-controller
        image: slipstream.test/snapshot-controller:v8.7.0
        imagePullPolicy: Never
        args:
        - --v=2
        - --leader-election=false
        - --enable-distributed-snapshotting
        - --feature-gates=CSIVolumeGroupSnapshot=true
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: slipstream}
driver: csi.slipstream.dev
deletionPolicy: Delete
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata: {name: slipstream}
driver: csi.slipstream.dev
deletionPolicy: Delete
`

// installSnapshots installs what every driver with snapshots shares. The files of upstream are in
// SLIPSTREAM_E2E_UPSTREAM.
func installSnapshots(t *testing.T, c cluster) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(os.Getenv("SLIPSTREAM_E2E_UPSTREAM"), "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of the snapshot controller in SLIPSTREAM_E2E_UPSTREAM: %v", err)
	}
	for _, f := range files {
		// The kustomization is no object, and the CRDs are longer than a client-side apply can remember.
		if filepath.Base(f) != "kustomization.yaml" {
			c.run(t, "apply", "--server-side", "-f", f)
		}
	}
	c.run(t, "wait", "--for=condition=Established", "--timeout=2m", "crd", "volumesnapshotclasses.snapshot.storage.k8s.io",
		"volumegroupsnapshotclasses.groupsnapshot.storage.k8s.io")
	c.apply(t, snapshotController)
}

// from is a claim that begins as something else: "VolumeSnapshot/x" or "PersistentVolumeClaim/x".
func from(source, name, class, mode, size string) string {
	kind, of, _ := strings.Cut(source, "/")
	group := "snapshot.storage.k8s.io"
	if kind == "PersistentVolumeClaim" {
		group = `""`
	}
	return claim(name, class, mode, size) + fmt.Sprintf("  dataSource: {apiGroup: %s, kind: %s, name: %s}\n", group,
		kind, of)
}

// snapshots takes snapshots of a file system and a raw block volume, restores them, and clones a volume.
func (s *suite) snapshots(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	stay := "trap exit TERM; while :; do sleep 1; done"
	s.a.apply(t, claim("source", "plain", "Filesystem", "64Mi")+claim("block-source", "plain", "Block", "32Mi")+
		pod{name: "source", claims: []string{"source", "block-source"}, node: node,
			command: "echo old > /source/x; echo old | dd of=/block-source bs=512 conv=sync,fsync 2>/dev/null; sync; " +
				stay}.manifest())
	s.a.phase(t, "pod", "source", "Running")
	eventually(t, "the pod has written", func() error {
		_, err := s.a.try("", "-n", namespace, "exec", "source", "--", "sh", "-ec",
			"grep -q old /source/x && head -c 3 /block-source | grep -q old")
		return err
	})
	for _, v := range []string{"source", "block-source"} {
		s.a.apply(t,
			fmt.Sprintf(
				"apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: %s, namespace: "+
					"%s}\nspec: {volumeSnapshotClassName: slipstream, source: {persistentVolumeClaimName: %s}}\n", v, namespace, v))
	}
	for _, v := range []string{"source", "block-source"} {
		s.a.snapshotReady(t, v)
	}
	s.a.exec(t, "source", "echo new > /source/x; echo new | dd of=/block-source bs=512 conv=sync,fsync 2>/dev/null; sync")
	shown("snapshots of a file system and of a raw block volume are ready to use")

	s.a.apply(t, from("VolumeSnapshot/source", "restored", "plain", "Filesystem", "64Mi")+
		from("VolumeSnapshot/block-source", "block-restored", "plain", "Block", "32Mi")+
		from("PersistentVolumeClaim/source", "cloned", "plain", "Filesystem", "64Mi")+
		pod{name: "copies", claims: []string{"restored", "block-restored", "cloned"}, node: node, command: stay}.manifest())
	s.a.phase(t, "pod", "copies", "Running")
	s.a.exec(t, "copies", "grep -q old /restored/x && head -c 3 /block-restored | grep -q old && grep -q new /cloned/x")
	shown("restored, both have what the snapshots had; a clone has what its source has now")

	claims := []string{"source", "block-source", "restored", "block-restored", "cloned"}
	pods := []string{"source", "copies"}
	if central() {
		// Preferred, not required: the scheduler's choice is the wrong node each time, and it may be another.
		strayed := pod{name: "strayed", claims: []string{"strayed"}, prefers: s.nodes("a")[1], command: stay}
		s.a.apply(t, from("VolumeSnapshot/source", "strayed", "plain", "Filesystem", "64Mi")+strayed.manifest())
		s.a.phase(t, "pod", "strayed", "Running")
		s.a.exec(t, "strayed", "grep -q old /strayed/x")
		if at := field(s.a.get(t, "-n", namespace, "pod", "strayed").Spec, "nodeName"); at != node {
			t.Errorf("the pod of a copy is on %s, the snapshot on %s", at, node)
		}
		shown("a pod that the scheduler puts on another node than its claim's snapshot is moved to the snapshot's")
		pods, claims = append(pods, "strayed"), append(claims, "strayed")
	}
	s.a.run(t, "-n", namespace, "delete", "volumesnapshot", "source", "block-source")
	s.a.remove(t, pods, claims)
}

func (c cluster) snapshotReady(t *testing.T, name string) {
	t.Helper()
	eventually(t, "snapshot "+name+" is ready", func() error {
		o := c.get(t, "-n", namespace, "volumesnapshot", name)
		if field(o.Status, "readyToUse") != "true" {
			return fmt.Errorf("status %v", o.Status)
		}
		return nil
	})
}

// groupSnapshot takes one of the shop's claims while it sells, restores both, and has the shop check them.
func (s *suite) groupSnapshot(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	if !central() {
		shown("nothing: the chart runs the snapshotter on every node, where it sees no group snapshots")
		t.SkipNow()
	}
	s.startShop(t)
	s.a.run(t, "-n", namespace, "label", "pvc", "stock", "sales", "app=shop", "--overwrite")
	s.a.apply(t,
		"apiVersion: groupsnapshot.storage.k8s.io/v1\nkind: VolumeGroupSnapshot\nmetadata: {name: shop, namespace: "+
			namespace+
			"}\nspec: {volumeGroupSnapshotClassName: slipstream, source: {selector: {matchLabels: {app: shop}}}}\n")
	of := s.a.groupSnapshotOf(t, namespace, "shop")
	if of["stock"] == "" || of["sales"] == "" {
		t.Fatalf("the group snapshot has %v", of)
	}
	acks := s.a.run(t, "-n", namespace, "logs", "shop")
	s.a.apply(t, from("VolumeSnapshot/"+of["stock"], "stock-then", "plain", "Filesystem", "128Mi")+
		from("VolumeSnapshot/"+of["sales"], "sales-then", "plain", "Filesystem", "128Mi")+
		pod{name: "then", claims: []string{"stock-then", "sales-then"}, node: node,
			command: "trap exit TERM; while :; do sleep 1; done"}.manifest())
	s.a.phase(t, "pod", "then", "Running")
	result := s.a.checkShop(t, namespace, "then", acks, "/stock-then", "/sales-then", 1)
	shown(
		"group snapshot of the shop while it sells, restored: %d orders, %d without stock movement, %d movements "+
			"without order",
		result.Orders, result.OrdersWithoutStock, result.MovementsWithoutOrder)
	s.a.remove(t, []string{"then"}, []string{"stock-then", "sales-then"})
	s.a.run(t, "-n", namespace, "delete", "volumegroupsnapshot", "shop")
}
