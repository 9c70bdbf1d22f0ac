package driver

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A foreign entry beside volumes and snapshots, and what cannot be removed, is named; the driver starts and
// everything else works.
func TestStrayEntriesCostOnlyThemselves(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	pool := h.d.opts.PoolDir
	h.stop()
	for _, path := range []string{"/volumes/stray", "/snapshots/stray"} {
		if err := vfs.WriteFileAtomic(h.mem, pool+path, []byte("foreign")); err != nil {
			t.Fatal(err)
		}
	}
	h.must(h.mem.MkdirAll(pool + "/volumes/dead.deleting"))
	h.must(h.mem.MkdirAll(pool + "/volumes/odd/volume.json"))
	h.start(vfs.NewErrFS(h.mem, func(op vfs.Op, name string) error {
		if op == vfs.OpRemoveAll && strings.HasSuffix(name, "dead.deleting") {
			return errors.New("cannot be removed")
		}
		return nil
	})) // before there is any good volume
	id := h.create("v", vc, nil)
	h.wantHealth(h.controllerHealth(id))
	for _, bad := range []struct{ id, path string }{{"stray", "/volumes/stray"}, {"odd", "/volumes/odd/volume.json"}} {
		got := h.controllerHealth(bad.id)
		h.wantHealth(got, "INACCESSIBLE "+health.ReasonRecordDamaged)
		h.wantWords(got, pool+bad.path)
	}
	response, err := h.c.ControllerListVolumeHealth(context.Background(), nil)
	h.must(err)
	var listed []string
	for _, e := range response.GetEntries() {
		listed = append(listed, e.GetVolumeId())
	}
	if got := strings.Join(listed, " "); got != "odd stray" {
		t.Errorf("listed %q", got)
	}
	snapshot, err := h.c.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{SourceVolumeId: id, Name: "s"})
	h.must(err)
	_, err = h.c.DeleteSnapshot(context.Background(),
		&csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()})
	h.must(err)
	h.must(h.delete(id))
	data, err := vfs.ReadFile(h.mem, pool+"/volumes/stray", 100)
	if err != nil || string(data) != "foreign" {
		t.Errorf("the stray file: %q, %v", data, err)
	}
}
