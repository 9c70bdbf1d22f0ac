package capability

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
		{[]string{"defaults", "rw", "dev,suid,exec", "async", "nofail", "_netdev", "x-systemd.automount", "comment=a b"}, nil,
			""},
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
