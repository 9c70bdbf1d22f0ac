package csiaddons

import (
	"context"

	"google.golang.org/protobuf/types/known/wrapperspb"

	identity "github.com/slipstream-storage/slipstream/pkg/api/addonidentitypb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Identity is the Identity service.
type Identity struct {
	identity.UnimplementedIdentityServer
	// Version of the program.
	Version string
}

// GetIdentity implements identity.IdentityServer.
func (i *Identity) GetIdentity(context.Context, *identity.GetIdentityRequest) (*identity.GetIdentityResponse, error) {
	return &identity.GetIdentityResponse{Name: plugin.Name, VendorVersion: i.Version}, nil
}

// GetCapabilities implements identity.IdentityServer. Ids are equal at both sites, so there is no destination info.
func (i *Identity) GetCapabilities(context.Context,
	*identity.GetCapabilitiesRequest) (*identity.GetCapabilitiesResponse, error) {
	capabilities := []*identity.Capability{
		{Type: &identity.Capability_Service_{Service: &identity.Capability_Service{
			Type: identity.Capability_Service_CONTROLLER_SERVICE}}},
		{Type: &identity.Capability_VolumeReplication_{VolumeReplication: &identity.Capability_VolumeReplication{
			Type: identity.Capability_VolumeReplication_VOLUME_REPLICATION}}},
	}
	for _, t := range []identity.Capability_VolumeGroup_Type{
		identity.Capability_VolumeGroup_VOLUME_GROUP,
		identity.Capability_VolumeGroup_LIMIT_VOLUME_TO_ONE_VOLUME_GROUP,
		identity.Capability_VolumeGroup_DO_NOT_ALLOW_VG_TO_DELETE_VOLUMES,
		identity.Capability_VolumeGroup_MODIFY_VOLUME_GROUP,
		identity.Capability_VolumeGroup_GET_VOLUME_GROUP,
		identity.Capability_VolumeGroup_LIST_VOLUME_GROUPS,
	} {
		capabilities = append(capabilities, &identity.Capability{Type: &identity.Capability_VolumeGroup_{
			VolumeGroup: &identity.Capability_VolumeGroup{Type: t}}})
	}
	return &identity.GetCapabilitiesResponse{Capabilities: capabilities}, nil
}

// Probe implements identity.IdentityServer. The sidecar asks once, and ends if it gets an error.
func (i *Identity) Probe(context.Context, *identity.ProbeRequest) (*identity.ProbeResponse, error) {
	return &identity.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
