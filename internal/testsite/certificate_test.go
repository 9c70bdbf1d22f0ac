package testsite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// TestCertificateThatCannotWork starts replicators whose certificate cannot be used. Their volumes are served all the
// same, the link stays closed and everybody is told why, and with right files it comes up without a restart: at the
// primary and at its peer.
func TestCertificateThatCannotWork(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands and runs two sites")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	pair := startPair(t, ctx)
	a, b := pair.A, pair.B
	authority, err := tlsfiles.OpenAuthority(filepath.Join(pair.Dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.CreateVolume(ctx, VolumeOptions{Name: "v", SizeBytes: 64 << 20, FSType: "ext4", Parameters: Replicable()})
	if err != nil {
		t.Fatal(err)
	}
	path, err := a.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
		Name: "g", Settings: &sidecarpb.GroupSettings{Remote: new(b.Config.Name), JournalSizeBytes: new(int64(64 << 20))},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "g", VolumeId: v.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WaitGroup(ctx, "g", "streaming", Streaming); err != nil {
		t.Fatal(err)
	}

	issue := func(s *Site, name string, validFor time.Duration) error {
		return authority.IssueSite(s.Config.TLSDir(), name, []string{"127.0.0.1"}, validFor)
	}
	for i, tc := range []struct {
		what  string
		at    *Site
		want  string
		spoil func(s *Site) error
	}{
		{"another site's", a, "and not for site-a", func(s *Site) error { return issue(s, "site-x", time.Hour) }},
		{"expired", a, "has expired at", func(s *Site) error { return issue(s, "site-a", time.Nanosecond) }},
		{"missing", a, "no such file", func(s *Site) error { return os.RemoveAll(s.Config.TLSDir()) }},
		{"malformed", a, "PEM", func(s *Site) error {
			return os.WriteFile(filepath.Join(s.Config.TLSDir(), tlsfiles.CertFile), []byte("rubbish"), 0o600)
		}},
		{"another site's, at the peer", b, "and not for site-b", func(s *Site) error {
			return issue(s, "site-x", time.Hour)
		}},
	} {
		if err := errors.Join(tc.at.Replicator().Kill(), tc.spoil(tc.at)); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		if err := tc.at.Start(ctx); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		if _, err := tc.at.WaitGroup(ctx, "g", "closed, with the reason", func(g *sidecarpb.GroupStatus) bool {
			return !g.GetConnected() && strings.Contains(g.GetStateReason(), tc.want)
		}); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		writeSynced(t, filepath.Join(path, fmt.Sprint(i)), "still here")
		log, err := os.ReadFile(tc.at.LogPath("replicator"))
		if err != nil || !strings.Contains(string(log), tc.want) {
			t.Errorf("%s: the log says nothing of it: %v", tc.what, err)
		}

		if err := issue(tc.at, tc.at.Config.Name, time.Hour); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		if _, err := a.WaitGroup(ctx, "g", "streaming with right files", Streaming); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		select { // nothing here starts it again
		case <-tc.at.Replicator().Ended():
			t.Errorf("%s: it ended", tc.what)
		default:
		}
	}
	if err := pair.WaitApplied(ctx, "g"); err != nil {
		t.Fatal(err)
	}
}

func TestCatchesAReplicatorThatNeedsACertificate(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands and runs two sites")
	}
	testenv.Catches(t, bug.NeedCertificate, "TestCertificateThatCannotWork")
}
