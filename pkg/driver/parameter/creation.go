package parameter

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// RequestedGroup returns the group that a CreateVolume's parameters name, those of its StorageClass with the mutable
// ones over them, or "": the volume is in none, or in one of its own (see ParamRemote). Errors are those of
// CreateVolume.
func RequestedGroup(req *csi.CreateVolumeRequest) (string, error) {
	p, err := ParseCreation(req)
	return p.Effective.Group, err
}

// Creation are the parameters of a CreateVolume.
type Creation struct {
	Given     map[string]string // of the class, with the group's name in place of its template
	Class     Volume
	Effective Volume // with the mutable parameters over them
}

// creationKey is the key of a context for the Creation of the call.
type creationKey struct{}

// In returns a context for the rest of the call that the parameters are of, so that they are parsed once.
func (p Creation) In(ctx context.Context) context.Context {
	return context.WithValue(ctx, creationKey{}, p)
}

// CreationOfCall returns the parameters of the CreateVolume that ctx is of. It parses them unless an interceptor has.
func CreationOfCall(ctx context.Context, req *csi.CreateVolumeRequest) (Creation, error) {
	if p, ok := ctx.Value(creationKey{}).(Creation); ok {
		return p, nil
	}
	return ParseCreation(req)
}

// ParseCreation reads the parameters of a CreateVolume. Errors are status errors with InvalidArgument.
func ParseCreation(req *csi.CreateVolumeRequest) (p Creation, err error) {
	if p.Given, err = ExpandParameters(req.GetParameters()); err != nil {
		return p, err
	}
	if p.Class, err = Parse(p.Given); err != nil {
		return p, err
	}
	if len(req.GetMutableParameters()) == 0 {
		p.Effective = p.Class
		return p, nil
	}
	if _, err = ParseMutation(req.GetMutableParameters()); err != nil {
		return p, err
	}
	p.Effective, err = Parse(Overlay(p.Given, req.GetMutableParameters()))
	return p, err
}
