package parameter

import (
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestGroupTemplate(t *testing.T) {
	claim := map[string]string{"csi.storage.k8s.io/pvc/namespace": "shop", "csi.storage.k8s.io/pvc/name": "orders",
		"csi.storage.k8s.io/pv/name": "pvc-1"}
	for template, want := range map[string]string{
		"fixed":                            "fixed",
		"${pvc.namespace}":                 "shop",
		"dr-${pvc.namespace}.${pv.name}":   "dr-shop.pvc-1",
		"${pvc.namespace}-${pvc.name}":     "shop-orders",
		"${pvc.namespace}${pvc.namespace}": "shopshop",
	} {
		parameters := maps.Clone(claim)
		parameters[KeyConsistencyGroup] = template
		got, err := RequestedGroup(&csi.CreateVolumeRequest{Parameters: parameters})
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", template, got, err, want)
		}
		if parameters[KeyConsistencyGroup] != template {
			t.Errorf("%q: the request was changed", template)
		}
		// A class alone, as in GetCapacity, is right too.
		p, err := Parse(map[string]string{KeyConsistencyGroup: template})
		if err != nil || !p.Replicable || p.GroupName("id") == "" {
			t.Errorf("%q in a class: %+v, %v", template, p, err)
		}
	}
	for template, message := range map[string]string{
		"${pvc.label}":                          "no variable",
		"$pvc.namespace":                        "no variable",
		"${pvc.namespace":                       "no variable",
		"$":                                     "no variable",
		"${pvc.namespace}-":                     "not a name",
		"Shop-${pvc.namespace}":                 "not a name",
		strings.Repeat("x", 63) + "${pvc.name}": "not a name",
	} {
		parameters := maps.Clone(claim)
		parameters[KeyConsistencyGroup] = template
		_, err := RequestedGroup(&csi.CreateVolumeRequest{Parameters: parameters})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: error %v, want one about %q", template, err, message)
		}
		if _, err := Parse(map[string]string{KeyConsistencyGroup: template}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q in a class: error %v", template, err)
		}
	}
	_, err := RequestedGroup(&csi.CreateVolumeRequest{
		Parameters: map[string]string{KeyConsistencyGroup: "${pvc.namespace}"},
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--extra-create-metadata") {
		t.Errorf("without metadata: %v", err)
	}
	long := maps.Clone(claim)
	long["csi.storage.k8s.io/pvc/name"], long[KeyConsistencyGroup] = strings.Repeat("n", 63), "a-${pvc.name}"
	if _, err := RequestedGroup(&csi.CreateVolumeRequest{Parameters: long}); status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(err.Error(), "for this claim") {
		t.Errorf("too long for this claim: %v", err)
	}
}
