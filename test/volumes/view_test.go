package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// view opens a view at B, and returns what its volumes are called in CSI, by those that they show.
func (s *sites) view(r *sidecarpb.CreateViewRequest) map[string]string {
	s.t.Helper()
	r.Group = group
	view, err := s.B.Sidecar.CreateView(s.ctx, r)
	s.must(err)
	handles := map[string]string{}
	for _, v := range view.GetVolumes() {
		handles[v.GetVolumeId()] = v.GetCsiVolumeId()
	}
	return handles
}

func (s *sites) refused(what string, err error, want codes.Code) {
	s.t.Helper()
	if got := status.Code(errors.Unwrap(err)); got != want {
		s.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestViewsAsVolumes uses the volumes of views of a secondary by CSI: one as the handle of a PersistentVolume, one as
// the source of a volume, while the primary is written to and the processes of the secondary are killed.
func TestViewsAsVolumes(t *testing.T) {
	for fsType, size := range map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib} {
		t.Run(fsType, func(t *testing.T) { newSites(t).useViews(fsType, size) })
	}
}

func (s *sites) useViews(fsType string, size int64) {
	stock, stockPath := s.create(testsite.VolumeOptions{Name: "stock", SizeBytes: size, FSType: fsType})
	sales, salesPath := s.create(testsite.VolumeOptions{Name: "sales", SizeBytes: size, FSType: fsType})
	want := s.writeRandom(filepath.Join(stockPath, "before"), 0, 4*mib)
	s.writeRandom(filepath.Join(salesPath, "before"), 0, 4*mib)
	s.settle()
	handles := s.view(&sidecarpb.CreateViewRequest{Name: "monday", Writable: true})

	// A volume by its handle alone, as that of a PersistentVolume that a person or the operator makes.
	static := &testsite.Volume{ID: handles[stock.ID]}
	path, err := s.B.Mount(s.ctx, static)
	s.must(err)
	mine := s.writeRandom(filepath.Join(path, "mine"), 0, mib)

	// A volume that is made from the handle, as a claim with a VolumeSnapshot is.
	o := testsite.VolumeOptions{Name: "claimed", SizeBytes: size, FSType: fsType, SnapshotID: handles[sales.ID]}
	claimed, err := s.B.CreateVolume(s.ctx, o)
	s.must(err)
	if again, err := s.B.CreateVolume(s.ctx, o); err != nil || again.ID != claimed.ID {
		s.t.Errorf("the same call again: volume %v, %v", again, err)
	}
	other := o
	other.Name = "other"
	_, err = s.B.CreateVolume(s.ctx, other)
	s.refused("a second volume of one volume of a view", err, codes.FailedPrecondition)
	other = o
	other.Name, other.SizeBytes = "larger", 2*size
	_, err = s.B.CreateVolume(s.ctx, other)
	s.refused("a volume larger than in the view", err, codes.OutOfRange)
	other = o
	other.Name, other.Parameters = "grouped", testsite.Replicable()
	_, err = s.B.CreateVolume(s.ctx, other)
	s.refused("a replicable volume that shows a view", err, codes.InvalidArgument)
	claimedPath, err := s.B.Mount(s.ctx, claimed)
	s.must(err)

	// The group goes on, and either process comes back.
	for i, kill := range []func() error{s.B.Replicator().Kill, s.B.Driver().Kill} {
		s.must(kill())
		s.must(s.B.Start(s.ctx))
		s.writeRandom(filepath.Join(stockPath, "later"), int64(i)*mib, mib)
	}
	s.settle()
	s.sameImages(stock, size)
	for _, at := range []string{path, claimedPath} {
		if _, err := os.Stat(filepath.Join(at, "before")); err != nil {
			s.t.Error(err)
		}
		s.absent(filepath.Join(at, "later"))
	}
	if reasons, err := s.B.Health(s.ctx, claimed); err != nil || len(reasons) > 0 {
		s.t.Errorf("health of a volume that shows a view: %q, %v", reasons, err)
	}
	if st, err := s.A.Group(s.ctx, group); err != nil || st.GetSyncTotalBytes() != 0 {
		s.t.Errorf("a view made the group copy %d bytes (%v)", st.GetSyncTotalBytes(), err)
	}

	// What was written to the view is there when the volume is mounted again, and the view while it is used.
	s.must(s.B.Unmount(s.ctx, static))
	path, err = s.B.Mount(s.ctx, static)
	s.must(err)
	if s.hash(filepath.Join(path, "before"), 0, 1<<62) != want || s.hash(filepath.Join(path, "mine"), 0, 1<<62) != mine {
		s.t.Error("a view mounted again has other contents")
	}
	gone := &sidecarpb.DeleteViewRequest{Group: group, Name: "monday"}
	if _, err := s.B.Sidecar.DeleteView(s.ctx, gone); status.Code(err) != codes.FailedPrecondition {
		s.t.Errorf("a view that is in use was deleted: %v", err)
	}
	s.must(s.B.Unmount(s.ctx, static))
	s.must(s.B.Unmount(s.ctx, claimed))
	if _, err := s.B.Sidecar.DeleteView(s.ctx, gone); err != nil {
		s.t.Fatal(err)
	}
	if reasons, err := s.B.Health(s.ctx, claimed); err != nil || !slices.Contains(reasons, "ViewFailed") {
		s.t.Errorf("health of a volume whose view was deleted: %q, %v", reasons, err)
	}
	_, err = s.B.Mount(s.ctx, static)
	s.refused("a volume whose view was deleted", err, codes.NotFound)
	_, err = s.B.Mount(s.ctx, claimed)
	s.refused("a claimed volume whose view was deleted", err, codes.FailedPrecondition)
	s.must(s.B.DeleteVolume(s.ctx, claimed))
	s.readOnlyView(stock, fsType)
}

// readOnlyView mounts a view that takes no writes, whose file systems cannot be recovered.
func (s *sites) readOnlyView(v *testsite.Volume, fsType string) {
	s.t.Helper()
	shown := &testsite.Volume{ID: s.view(&sidecarpb.CreateViewRequest{Name: "look"})[v.ID]}
	path, err := s.B.Mount(s.ctx, shown)
	s.must(err)
	if fsType == "ext4" { // XFS has it in the log, which is not replayed
		if _, err := os.Stat(filepath.Join(path, "before")); err != nil {
			s.t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(path, "mine"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		s.t.Errorf("a write to a view that takes none: %v", err)
	}
	s.must(s.B.Unmount(s.ctx, shown))
	_, err = s.B.Sidecar.DeleteView(s.ctx, &sidecarpb.DeleteViewRequest{Group: group, Name: "look"})
	s.must(err)
}
