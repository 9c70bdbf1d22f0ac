package parameter

import "github.com/slipstream-storage/slipstream/pkg/blockdev"

// Keys that csi-provisioner adds with --extra-create-metadata.
const (
	KeyClaimName      = kubernetesPrefix + "pvc/name"
	KeyClaimNamespace = kubernetesPrefix + "pvc/namespace"
	KeyVolumeName     = kubernetesPrefix + "pv/name"
)

// ClaimOf is what the provisioner says about the claim that a volume is for; nil without a claim.
func ClaimOf(parameters map[string]string, block bool) *blockdev.ClaimRecord {
	claim := blockdev.ClaimRecord{
		Name: parameters[KeyClaimName], Namespace: parameters[KeyClaimNamespace], Volume: parameters[KeyVolumeName],
	}
	if claim == (blockdev.ClaimRecord{}) {
		return nil
	}
	claim.Block = block
	return &claim
}
