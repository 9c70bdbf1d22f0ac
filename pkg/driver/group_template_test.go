package driver

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestGroupTemplate(t *testing.T) {
	claim := map[string]string{"csi.storage.k8s.io/pvc/namespace": "shop", "csi.storage.k8s.io/pvc/name": "orders", "csi.storage.k8s.io/pv/name": "pvc-1"}
	for template, want := range map[string]string{
		"fixed":                            "fixed",
		"${pvc.namespace}":                 "shop",
		"dr-${pvc.namespace}.${pv.name}":   "dr-shop.pvc-1",
		"${pvc.namespace}-${pvc.name}":     "shop-orders",
		"${pvc.namespace}${pvc.namespace}": "shopshop",
	} {
		parameters := maps.Clone(claim)
		parameters[ParamConsistencyGroup] = template
		got, err := ConsistencyGroup(&csi.CreateVolumeRequest{Parameters: parameters})
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", template, got, err, want)
		}
		if parameters[ParamConsistencyGroup] != template {
			t.Errorf("%q: the request was changed", template)
		}
		// A class alone, as in GetCapacity, is right too.
		p, err := parseParameters(map[string]string{ParamConsistencyGroup: template})
		if err != nil || !p.Replicable || p.groupName("id") == "" {
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
		parameters[ParamConsistencyGroup] = template
		if _, err := ConsistencyGroup(&csi.CreateVolumeRequest{Parameters: parameters}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: error %v, want one about %q", template, err, message)
		}
		if _, err := parseParameters(map[string]string{ParamConsistencyGroup: template}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q in a class: error %v", template, err)
		}
	}
	_, err := ConsistencyGroup(&csi.CreateVolumeRequest{Parameters: map[string]string{ParamConsistencyGroup: "${pvc.namespace}"}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--extra-create-metadata") {
		t.Errorf("without metadata: %v", err)
	}
	long := maps.Clone(claim)
	long["csi.storage.k8s.io/pvc/name"], long[ParamConsistencyGroup] = strings.Repeat("n", 63), "a-${pvc.name}"
	if _, err := ConsistencyGroup(&csi.CreateVolumeRequest{Parameters: long}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "for this claim") {
		t.Errorf("too long for this claim: %v", err)
	}
}

// The record and everything after it have the name, so that a call again, which expands again, finds the same volume.
func TestCreateWithGroupTemplate(t *testing.T) {
	h := newNode(t, startSidecar(t))
	parameters := map[string]string{ParamConsistencyGroup: "${pvc.namespace}", "csi.storage.k8s.io/pvc/namespace": "shop"}
	req := createReq("v", mountCapability(modeWriter, ""), parameters)
	var id string
	for range 2 {
		response, err := h.c.CreateVolume(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		id = response.GetVolume().GetVolumeId()
	}
	rec, err := h.d.pool.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Group != "shop" || rec.Parameters[ParamConsistencyGroup] != "shop" {
		t.Errorf("group %q, parameters %v", rec.Group, rec.Parameters)
	}
	if _, err := h.c.GetCapacity(context.Background(), &csi.GetCapacityRequest{Parameters: map[string]string{ParamConsistencyGroup: "${pvc.namespace}"}}); err != nil {
		t.Errorf("capacity of the class: %v", err)
	}
}
