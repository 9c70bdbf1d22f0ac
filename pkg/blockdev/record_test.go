package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
)

func fullRecord() *VolumeRecord {
	return &VolumeRecord{
		ID: "vol-1", Name: "pvc-9f1c", SizeBytes: 1 << 30, BlockSizeBytes: 512, Thick: true,
		Replicable: true, Order: OrderAck,
		Group: "shop/db", Remote: "site-b", FSType: "xfs", Parameters: map[string]string{"slipstream.dev/order": "ack"},
		Format: &FormatRecord{State: FormatFormatted, FSType: "xfs", UUID: "6f1e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f",
			Options: []string{"-m", "reflink=1"}},
		Stage: &StageRecord{StagingPath: "/var/lib/kubelet/x", Device: "/dev/loop7", BackingPath: "/run/shim/vol-1/volume",
			FSType: "xfs", MountOptions: []string{"noatime"}, ReadOnly: true, Block: true},
		State: VolumeReady, Secondary: true, CreatedUnixNanos: 1763884800000000001,
	}
}

func encode(t testing.TB, r *VolumeRecord) []byte {
	t.Helper()
	data, err := EncodeVolumeRecord(r)
	noErr(t, err)
	return data
}

// TestRecordFormat pins the bytes: files of the first version have to stay readable.
func TestRecordFormat(t *testing.T) {
	r := &VolumeRecord{ID: "v", Name: "n", SizeBytes: 4096, BlockSizeBytes: 4096, State: VolumeReady}
	want := `{"format":"slipstream-volume","version":1,"crc32c":"d057e321","body":
{
  "id": "v",
  "name": "n",
  "sizeBytes": 4096,
  "blockSizeBytes": 4096,
  "state": "ready",
  "createdUnixNanos": 0
}
}
`
	if d := cmp.Diff(want, string(encode(t, r))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	want := fullRecord()
	got, err := DecodeVolumeRecord("volume.json", encode(t, want))
	noErr(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	clone := want.Clone()
	if d := cmp.Diff(want, clone); d != "" {
		t.Errorf("clone (-want +got):\n%s", d)
	}
	clone.Parameters["x"], clone.Format.Options[0], clone.Stage.MountOptions[0], clone.Stage.Device = "y", "z", "z", "z"
	if d := cmp.Diff(fullRecord(), want); d != "" {
		t.Errorf("changing the clone changed the original:\n%s", d)
	}
}

// TestRecordDamage: no bit can flip and no byte can be missing or added unnoticed, and each error names the file.
func TestRecordDamage(t *testing.T) {
	data := encode(t, fullRecord())
	refuse := func(what string, data []byte) {
		t.Helper()
		_, err := DecodeVolumeRecord("/pool/volumes/vol-1/volume.json", data)
		var corrupt *recordfile.CorruptError
		var newer *recordfile.NewerVersionError
		switch {
		case err == nil:
			t.Errorf("%s was not noticed", what)
		case !errors.As(err, &corrupt) && !errors.As(err, &newer):
			t.Errorf("%s: error %T: %v", what, err, err)
		case !strings.Contains(err.Error(), "/pool/volumes/vol-1/volume.json"):
			t.Errorf("%s: error %q does not name the file", what, err)
		}
	}
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			refuse(fmt.Sprintf("flipping bit %d of byte %d (%q)", bit, i, data[i]), flipped)
		}
		refuse(fmt.Sprintf("cutting at %d", i), data[:i])
		refuse(fmt.Sprintf("zeros from %d", i), append(bytes.Clone(data[:i]), make([]byte, len(data)-i)...))
	}
	refuse("a byte more", append(bytes.Clone(data), '\n'))
	refuse("twice", append(bytes.Clone(data), data...))
}

func TestRecordRefused(t *testing.T) {
	good := string(encode(t, fullRecord()))
	body := func(s string) []byte { // a well-formed file with that body
		return fmt.Appendf(nil, "{\"format\":\"slipstream-volume\",\"version\":1,\"crc32c\":\"%08x\",\"body\":\n%s\n}\n",
			crc32c.Sum([]byte(s)), s)
	}
	for name, tc := range map[string]struct {
		data []byte
		want []string
	}{
		"empty": {nil, []string{"f is damaged at offset 0", "empty"}},
		"cut":   {[]byte(good[:200]), []string{"f is damaged at offset 200", "cut"}},
		"newer": {[]byte(strings.Replace(good, `"version":1`, `"version":2`, 1)),
			[]string{"f has format version 2", "newer"}},
		"another kind": {[]byte(strings.Replace(good, "slipstream-volume", "slipstream-group", 1)),
			[]string{"slipstream-group"}},
		"edited":        {[]byte(strings.Replace(good, "pvc-9f1c", "pvc-0000", 1)), []string{"CRC-32C"}},
		"unknown field": {body(`{"id":"v","color":"red"}`), []string{`unknown field "color"`}},
		"invalid":       {body(`{"id":"v","sizeBytes":100,"blockSizeBytes":4096,"state":"ready"}`), []string{"size 100"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeVolumeRecord("f", tc.data)
			wantErrText(t, err, tc.want...)
		})
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(*VolumeRecord){
		"size 0":            func(r *VolumeRecord) { r.SizeBytes = 0 },
		"size -4096":        func(r *VolumeRecord) { r.SizeBytes = -4096 },
		"size 513":          func(r *VolumeRecord) { r.SizeBytes = 513 },
		"block size 1000":   func(r *VolumeRecord) { r.BlockSizeBytes = 1000 },
		"block size 0":      func(r *VolumeRecord) { r.BlockSizeBytes = 0 },
		"block size 8192":   func(r *VolumeRecord) { r.BlockSizeBytes = 8192 },
		`order "later"`:     func(r *VolumeRecord) { r.Order = "later" },
		"without an order":  func(r *VolumeRecord) { r.Order = "" },
		`state "gone"`:      func(r *VolumeRecord) { r.State = "gone" },
		`format state ""`:   func(r *VolumeRecord) { r.Format.State = "" },
		`id "../etc"`:       func(r *VolumeRecord) { r.ID = "../etc" },
		`volume id "Upper"`: func(r *VolumeRecord) { r.ID = "Upper" },
		// What reaches mount, mkfs, manifests and terminals.
		`system "fuse.sh"`:                       func(r *VolumeRecord) { r.FSType = "fuse.sh" },
		`system "raw"`:                           func(r *VolumeRecord) { r.FSType = FSRaw },
		`formatted: file system "nfs"`:           func(r *VolumeRecord) { r.Format.FSType = "nfs" },
		`formatted: file system ""`:              func(r *VolumeRecord) { r.Format.FSType = "" },
		`staged: file system "auto"`:             func(r *VolumeRecord) { r.Stage.FSType = "auto" },
		`"a,reflink=0" is no UUID`:               func(r *VolumeRecord) { r.Format.UUID = "a,reflink=0" },
		"33 options":                             func(r *VolumeRecord) { r.Format.Options = make([]string, 33) },
		`format option "\n" has`:                 func(r *VolumeRecord) { r.Format.Options = []string{"\n"} },
		`name "\x1b[2J" has a control character`: func(r *VolumeRecord) { r.Name = "\x1b[2J" },
		"name has 257 bytes":                     func(r *VolumeRecord) { r.Name = strings.Repeat("x", 257) },
		"group has 300 bytes":                    func(r *VolumeRecord) { r.Group = strings.Repeat("x", 300) },
		`group to move to "a\tb"`:                func(r *VolumeRecord) { r.MoveTo = "a\tb" },
		`remote site "\u202e"`:                   func(r *VolumeRecord) { r.Remote = "\u202e" },
		`claim "a/b"`:                            func(r *VolumeRecord) { r.Claim = &ClaimRecord{Name: "a/b"} },
		`claim's namespace "A"`:                  func(r *VolumeRecord) { r.Claim = &ClaimRecord{Namespace: "A"} },
		`persistent volume "-"`:                  func(r *VolumeRecord) { r.Claim = &ClaimRecord{Volume: "-"} },
		`claim's storage class "A"`:              withManifest(ClaimManifest{StorageClass: "A"}),
		`claim requests -1 bytes`:                withManifest(ClaimManifest{RequestBytes: -1}),
		`access mode "Any" is unknown`:           withManifest(ClaimManifest{AccessModes: []string{"Any"}}),
		`claim has 5 access modes`:               withManifest(ClaimManifest{AccessModes: make([]string, 5)}),
		`claim has 33 labels`:                    withManifest(ClaimManifest{Labels: manyLabels(33)}),
		`label "a b" is no label key`:            withManifest(ClaimManifest{Labels: map[string]string{"a b": ""}}),
		`label a: "\u202e" is no label value`:    withManifest(ClaimManifest{Labels: map[string]string{"a": "\u202e"}}),
		"put into 18446744073709551615 groups":   func(r *VolumeRecord) { r.Joins = 1<<64 - 1 },
	} {
		r := fullRecord()
		change(r)
		_, err := EncodeVolumeRecord(r)
		wantErrText(t, err, want)
	}
}

func TestValidateID(t *testing.T) {
	for _, id := range []string{"a", "0", "vol-1", "a-", strings.Repeat("x", maxIDLength)} {
		if err := ValidateID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{
		"", ".", "..", "-a", "a/b", "a.b", "A", "a b", "a\x00", "ä", "a.creating", strings.Repeat("x", maxIDLength+1),
	} {
		if ValidateID(id) == nil {
			t.Errorf("%q is let through", id)
		}
	}
}

func FuzzDecodeVolumeRecord(f *testing.F) {
	data := encode(f, fullRecord())
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(`{"format":"slipstream-volume","version":1,"crc32c":"00000000","body":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeVolumeRecord("volume.json", data)
		if err != nil {
			return
		}
		// What is accepted is understood: it is written again without loss.
		again, err := DecodeVolumeRecord("volume.json", encode(t, r))
		noErr(t, err)
		if d := cmp.Diff(r, again); d != "" {
			t.Errorf("(-first +second):\n%s", d)
		}
	})
}

func withManifest(m ClaimManifest) func(*VolumeRecord) {
	return func(r *VolumeRecord) { r.Claim = &ClaimRecord{Name: "a", Namespace: "b", Manifest: &m} }
}

func manyLabels(n int) map[string]string {
	labels := map[string]string{}
	for i := range n {
		labels[fmt.Sprint("l", i)] = "v"
	}
	return labels
}
