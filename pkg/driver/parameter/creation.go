package parameter

import "github.com/container-storage-interface/spec/lib/go/csi"

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

func ParseCreation(req *csi.CreateVolumeRequest) (p Creation, err error) {
	if p.Given, err = ExpandParameters(req.GetParameters()); err != nil {
		return p, err
	}
	if p.Class, err = Parse(p.Given); err != nil {
		return p, err
	}
	if _, err = ParseMutation(req.GetMutableParameters()); err != nil {
		return p, err
	}
	p.Effective, err = Parse(Overlay(p.Given, req.GetMutableParameters()))
	return p, err
}
