package parameter

import (
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"
)

func TestParseParameters(t *testing.T) {
	for _, tc := range []struct {
		name   string
		params map[string]string
		want   Volume
		err    string // part of the message; empty: none
	}{
		{name: "none", want: Volume{Order: "ack"}},
		{name: "all", params: map[string]string{
			"slipstream.dev/replicable": "true", "slipstream.dev/consistency-group": "shop", "slipstream.dev/remote": "west",
			"slipstream.dev/order": "flush", "slipstream.dev/journal-size": "64Mi", "slipstream.dev/journal-full": "stall",
			"slipstream.dev/provisioning": "thick", "csi.storage.k8s.io/fstype": "xfs",
		}, want: Volume{FSType: "xfs", Replicable: true, Group: "shop", Remote: "west", Order: "flush",
			JournalSizeBytes: 64 << 20,
			JournalFull:      "stall", Thick: true}},
		{name: "tails", params: map[string]string{"slipstream.dev/remote": "west", "slipstream.dev/keep-tails": "5",
			"slipstream.dev/keep-tails-for": "720h"},
			want: Volume{Replicable: true, Remote: "west", Order: "ack", TailsMost: 5, TailsMillis: 720 * 3600 * 1000}},
		{name: "group implies replicable", params: map[string]string{"slipstream.dev/consistency-group": "shop"},
			want: Volume{Replicable: true, Group: "shop", Order: "ack"}},
		{name: "remote implies replicable", params: map[string]string{"slipstream.dev/remote": "west"},
			want: Volume{Replicable: true, Remote: "west", Order: "ack"}},
		{name: "others are ignored", params: map[string]string{"example.com/anything": "x",
			"csi.storage.k8s.io/pvc/name":                    "data",
			"csi.storage.k8s.io/something-new-of-kubernetes": "x"}, want: Volume{Order: "ack"}},

		{name: "group of a plain volume", params: map[string]string{"slipstream.dev/consistency-group": "shop",
			"slipstream.dev/replicable": "false"},
			err: "slipstream.dev/replicable is false"},
		{name: "remote of a plain volume", params: map[string]string{"slipstream.dev/remote": "west",
			"slipstream.dev/replicable": "false"},
			err: "slipstream.dev/remote needs a replicable volume"},
		{name: "order of a plain volume", params: map[string]string{"slipstream.dev/order": "ack"},
			err: "for replicable volumes only"},
		{name: "journal without group", params: map[string]string{"slipstream.dev/replicable": "true",
			"slipstream.dev/journal-size": "64Mi"},
			err: "slipstream.dev/journal-size describes a group"},
		{name: "journal-full without group", params: map[string]string{"slipstream.dev/journal-full": "stall"},
			err: "slipstream.dev/journal-full"},
		{name: "tails without group", params: map[string]string{"slipstream.dev/keep-tails": "5"},
			err: "slipstream.dev/keep-tails describes a group"},
		{name: "age of tails without group", params: map[string]string{"slipstream.dev/keep-tails-for": "1h"},
			err: "slipstream.dev/keep-tails-for describes a group"},
		{name: "too many tails", params: map[string]string{"slipstream.dev/remote": "w",
			"slipstream.dev/keep-tails": "4294967296"}, err: "is not a number"},
		{name: "unknown", params: map[string]string{"slipstream.dev/replicate": "true"},
			err: `did you mean "slipstream.dev/replicable"`},
		{name: "unknown, other key", params: map[string]string{"slipstream.dev/group": "x"},
			err: `unknown parameter "slipstream.dev/group": did you mean "slipstream.dev/`},
		{name: "case", params: map[string]string{"slipstream.dev/journalSize": "1Gi"},
			err: `did you mean "slipstream.dev/journal-size"`},
		{name: "without domain", params: map[string]string{"consistencygroup": "x"},
			err: `did you mean "slipstream.dev/consistency-group"`},
		{name: "misspelt Kubernetes key", params: map[string]string{"csi.storage.k8s.io/fsType": "xfs"},
			err: `did you mean "csi.storage.k8s.io/fstype"`},
		{name: "bool", params: map[string]string{"slipstream.dev/replicable": "True"},
			err: `parameter slipstream.dev/replicable: "True" is not true or false`},
		{name: "enum", params: map[string]string{"slipstream.dev/order": "sync"}, err: `"sync" is not one of ack, flush`},
		{name: "name", params: map[string]string{"slipstream.dev/consistency-group": "../etc"}, err: "is not a name"},
		{name: "quantity", params: map[string]string{"slipstream.dev/remote": "w", "slipstream.dev/journal-size": "1.5Gi"},
			err: "is not a quantity"},
		{name: "small journal", params: map[string]string{"slipstream.dev/remote": "w", "slipstream.dev/journal-size": "1Mi"},
			err: "minimum of 16Mi"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(tc.params)
			if tc.err != "" {
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want InvalidArgument with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.replicableGiven, got.orderGiven = false, false
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestParseQuantity(t *testing.T) {
	for value, want := range map[string]int64{
		"1": 1, "64Mi": 64 << 20, "1Gi": 1 << 30, "2Ti": 2 << 40, "10k": 10000, "5M": 5e6, "1G": 1e9, "7Pi": 7 << 50,
	} {
		if got, err := ParseQuantity(value); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", value, got, err, want)
		}
	}
	for _, value := range []string{"", "0", "0Gi", "-1", "Gi", "1gi", "1 Gi", "1e3", "1.5Gi", "9223372036854775808",
		"9000000Pi", "+1"} {
		if got, err := ParseQuantity(value); err == nil {
			t.Errorf("%q: got %d, want an error", value, got)
		}
	}
}

// TestParameterRegistry holds the registry to what the documentation generated from it promises.
func TestParameterRegistry(t *testing.T) {
	seen := map[string]bool{}
	for _, spec := range Specs {
		if !regexp.MustCompile(`^slipstream\.dev/[a-z]+(-[a-z]+)*$`).MatchString(spec.Key) || seen[spec.Key] {
			t.Errorf("%s: not kebab-case under the prefix, or twice", spec.Key)
		}
		seen[spec.Key] = true
		if spec.Doc == "" {
			t.Errorf("%s: no documentation", spec.Key)
		}
		if (spec.Type == TypeEnum) != (len(spec.Values) > 0) {
			t.Errorf("%s: type %q with values %v", spec.Key, spec.Type, spec.Values)
		}
		if spec.Default == "" {
			continue
		}
		// The default written out must mean the same as the key left out.
		var p, q Volume
		if err := p.applyOwn(spec.Key, spec.Default); err != nil {
			t.Errorf("%s: default: %v", spec.Key, err)
		}
		p.replicableGiven, p.orderGiven = false, false
		q.Order = p.Order
		if p.Settings() != q.Settings() {
			t.Errorf("%s: its default %q means %+v, its absence %+v", spec.Key, spec.Default, p.Settings(), q.Settings())
		}
	}
}

// TestEditDistance compares with the definition.
func TestEditDistance(t *testing.T) {
	var naive func(a, b string) int
	naive = func(a, b string) int {
		if a == "" || b == "" {
			return len(a) + len(b)
		}
		if a[0] == b[0] {
			return naive(a[1:], b[1:])
		}
		return 1 + min(naive(a[1:], b), naive(a, b[1:]), naive(a[1:], b[1:]))
	}
	word := rapid.StringMatching(`[abc]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		if got, want := editDistance(a, b), naive(a, b); got != want {
			t.Fatalf("distance of %q and %q: got %d, want %d", a, b, got, want)
		}
	})
}

// TestSnapshotParameters: a class's own field among the parameters is none of the driver's business; what looks like a
// mistyped key is.
func TestSnapshotParameters(t *testing.T) {
	p, err := ParseSnapshot(map[string]string{
		"deletionPolicy": "Retain", "csi.storage.k8s.io/volumesnapshot/name": "s", KeyFreeze: "true",
	})
	if err != nil || !p.Freeze {
		t.Errorf("%+v, %v", p, err)
	}
	for _, key := range []string{"deletionpolicy", "freeze", Prefix + "frieze"} {
		if _, err := ParseSnapshot(map[string]string{key: "true"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", key, err)
		}
	}
}
