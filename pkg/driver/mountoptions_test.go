package driver

import (
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

func TestMountOptions(t *testing.T) {
	const context = `context="system_u:object_r:container_file_t:s0:c1,c2"`
	for _, tc := range []struct {
		given, want []string
		refused     string
	}{
		{nil, nil, ""},
		{[]string{"noatime,nodev", "noexec"}, []string{"noatime", "nodev", "noexec"}, ""},
		{[]string{context, "ro"}, []string{context, "ro"}, ""},
		{[]string{"noatime," + context + ",discard"}, []string{"noatime", context, "discard"}, ""},
		{[]string{"defaults", "rw", "dev,suid,exec", "async", "nofail", "_netdev", "x-systemd.automount", "comment=a b"}, nil, ""},
		{[]string{"noatime", "noatime"}, []string{"noatime"}, ""},
		{[]string{"errors=remount-ro", "commit=30"}, []string{"errors=remount-ro", "commit=30"}, ""},
		{[]string{"commit=30", "commit=5"}, nil, "twice"},
		{[]string{"ro", "rw"}, nil, "ro and rw"},
		{[]string{"ro,rw"}, nil, "ro and rw"},
		{[]string{"nodev", "dev"}, nil, "dev and nodev"},
		{[]string{"suid,nosuid"}, nil, "suid and nosuid"},
		{[]string{"relatime", "noatime"}, nil, "noatime and relatime"},
		{[]string{"loop"}, nil, "another device"},
		{[]string{"loop=/dev/loop7"}, nil, "another device"},
		{[]string{"noatime,offset=4096"}, nil, "another device"},
		{[]string{"logdev=/dev/sda"}, nil, "one device"},
		{[]string{"helper=sh"}, nil, "program"},
		{[]string{"uhelper=sh"}, nil, "program"},
		{[]string{"remount"}, nil, "another operation"},
		{[]string{"bind"}, nil, "another operation"},
		{[]string{"private", "rshared"}, nil, "CO's to decide"},
		{[]string{"user"}, nil, "users"},
		{[]string{"X-mount.mkdir"}, nil, "mount(8)"},
		{[]string{"X-mount.subdir=a"}, nil, "mount(8)"},
		{[]string{""}, nil, "empty"},
		{[]string{"noatime,"}, nil, "empty"},
		{[]string{",noatime"}, nil, "empty"},
		{[]string{"=x"}, nil, "empty"},
		{[]string{`context="a`}, nil, "not closed"},
		{[]string{"no\x00atime"}, nil, "0x0"},
		{[]string{"noatime\nsuid"}, nil, "0xa"},
	} {
		got, err := parseMountOptions(tc.given)
		if tc.refused != "" {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%q: %q, %v; want InvalidArgument with %q", tc.given, got, err, tc.refused)
			}
			continue
		}
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q, %v; want %q", tc.given, got, err, tc.want)
		}
		again, err := parseMountOptions(got)
		if err != nil || !slices.Equal(again, got) {
			t.Errorf("%q, parsed again: %q, %v", got, again, err)
		}
	}
}

func FuzzMountOptions(f *testing.F) {
	f.Add(`noatime,context="a:b:c1,c2",ro`)
	f.Fuzz(func(t *testing.T, flags string) {
		options, err := parseMountOptions([]string{flags})
		if err != nil {
			return
		}
		if strings.Join(options, ",") == "" {
			return
		}
		// mount(8) gets them joined: they have to mean the same then.
		again, err := parseMountOptions([]string{strings.Join(options, ",")})
		if err != nil || !slices.Equal(again, options) {
			t.Errorf("%q is %q, then %q, %v", flags, options, again, err)
		}
	})
}

// TestStagedWithOtherOptions: what is staged or published in one way is not taken for what is asked for in another.
func TestStagedWithOtherOptions(t *testing.T) {
	h := newNode(t, nil)
	with := func(options ...string) *csi.VolumeCapability { return mountCapability(modeMultiWriter, "", options...) }
	id := h.create("v", with(), nil)
	h.want(h.stage(id, with("loop")), codes.InvalidArgument, "loop")
	h.clean()
	h.must(h.stage(id, with("noatime", "nodev")))
	h.must(h.stage(id, with("nodev,noatime", "rw"))) // the same
	h.must(h.stage(id, mountCapability(modeWriter, "ext4", "noatime", "nodev")))
	for _, other := range [][]string{nil, {"noatime"}, {"noatime", "nodev", "noexec"}, {"relatime", "nodev"}} {
		h.want(h.stage(id, with(other...)), codes.AlreadyExists, "noatime", "unstage it first")
	}
	h.want(h.stage(id, with("noatime", "nodev", "ro")), codes.AlreadyExists, "read-only")
	h.want(h.stage(id, mountCapability(modeMultiWriter, "xfs", "noatime", "nodev")), codes.AlreadyExists, "ext4, not xfs")
	if len(h.mounts) != 1 {
		t.Errorf("mounts %v", h.mounts)
	}

	h.want(h.publish(id, "a", with("noatime", "noexec"), false), codes.FailedPrecondition, "noexec")
	h.want(h.publish(id, "a", mountCapability(modeMultiWriter, "xfs"), false), codes.FailedPrecondition, "xfs")
	h.must(h.publish(id, "a", with("nodev", "noatime"), false))
	h.must(h.publish(id, "a", with("noatime,nodev"), false))
	h.want(h.publish(id, "a", with("noatime"), false), codes.AlreadyExists)
	h.must(h.publish(id, "b", with("noatime", "ro"), false)) // read-only is the bind mount's
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "b"))
	h.must(h.unstage(id))

	// Not staged any more, so it can be staged in another way.
	h.must(h.stage(id, with("noexec", "ro")))
	h.want(h.publish(id, "a", with("noexec"), false), codes.FailedPrecondition, "read-only")
	h.must(h.publish(id, "a", with("noexec"), true))
	h.must(h.unpublish(id, "a"))
	h.must(h.unstage(id))

	// A reader of a raw volume leaves no record that it was handed out, so it cannot be followed by a writer.
	raw := h.create("raw", blockCapability(modeReader), nil)
	h.must(h.stage(raw, blockCapability(modeReader)))
	h.want(h.publish(raw, "a", blockCapability(modeWriter), false), codes.FailedPrecondition, "read-only")
	h.must(h.publish(raw, "a", blockCapability(modeReader), true))
	h.must(h.unpublish(raw, "a"))
	h.must(h.unstage(raw))
	h.clean()
}

// TestMountIsLookedAt: a mount that is not what was asked for, as mount(8) makes one of a device that cannot be written, is not
// left there.
func TestMountIsLookedAt(t *testing.T) {
	h := newNode(t, nil)
	vc := mountCapability(modeWriter, "")
	id := h.create("v", vc, nil)
	for what, change := range map[string]func(*MountEntry){
		"read-only":    func(m *MountEntry) { m.ReadOnly = true },
		"ext2":         func(m *MountEntry) { m.FSType = "ext2" },
		"is not there": func(m *MountEntry) { m.Mountpoint = h.target("elsewhere") },
	} {
		mounted := false
		h.hook = func(op string) error {
			if op == "mounts " && mounted {
				change(&h.mounts[len(h.mounts)-1])
				mounted = false
			}
			mounted = mounted || strings.HasPrefix(op, "mount ")
			return nil
		}
		h.want(h.stage(id, vc), codes.Internal, what)
		h.hook = nil
		if what == "is not there" {
			h.mounts = nil
			h.must(h.unstage(id))
		}
		h.clean()
	}
	h.must(h.stage(id, vc))
	if rec, err := h.d.pool.Get(id); err != nil || rec.Format.State != blockdev.FormatFormatted {
		t.Errorf("%v, %v", rec, err)
	}
	h.must(h.unstage(id))
}
