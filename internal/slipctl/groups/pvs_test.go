package groups

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected manifests in testdata")

// The manifests are compared as text: they are what a person reads before applying them.
func TestManifests(t *testing.T) {
	g := &sidecarpb.GroupStatus{Name: "shop", Role: sidecarpb.Role_ROLE_PRIMARY, Volumes: []*sidecarpb.VolumeStatus{
		{VolumeId: "vol-1", SizeBytes: 10 << 30, ClaimName: "orders", ClaimNamespace: "shop", PersistentVolume: "pvc-1",
			FsType: "ext4"},
		{VolumeId: "vol-2", SizeBytes: 1 << 30, ClaimName: "raw", ClaimNamespace: "shop", PersistentVolume: "pvc-2",
			Block: true},
		{VolumeId: "vol-3", SizeBytes: 1<<30 + 4096, FsType: "xfs"},
		{VolumeId: "vol-4", SizeBytes: 1 << 30},
	}}
	a := adoption{node: "node-b", storageClass: "shop", accessMode: "ReadWriteOncePod", reclaim: "Retain"}
	var out bytes.Buffer
	c := &cli{&frame.CLI{Out: &out, Output: "table"}}
	if err := c.printManifests(a.manifests(g)); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "pvs.golden.yaml")
	if *rewrite {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Error(diff)
	}
}
