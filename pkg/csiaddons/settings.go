package csiaddons

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// settings reads the parameters of a VolumeReplicationClass or VolumeGroupReplicationClass: those of a group under the
// driver's prefix. Others, such as schedulingInterval, are the controller's and are passed over.
func settings(params map[string]string) (parameter.Mutation, error) {
	own := map[string]string{}
	for key, value := range params {
		if strings.HasPrefix(key, parameter.Prefix) {
			own[key] = value
		}
	}
	m, err := parameter.ParseMutation(own)
	if err != nil {
		return m, err
	}
	for key := range own {
		if !slices.Contains(parameter.GroupKeys, key) {
			return m, status.Errorf(codes.InvalidArgument, "parameter %s is of a volume; a class of csi-addons can have: %s",
				key, strings.Join(parameter.GroupKeys, ", "))
		}
	}
	return m, nil
}
