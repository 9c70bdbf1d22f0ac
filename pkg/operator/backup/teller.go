package backup

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

const (
	// maxToldLabels is what the engine takes of a claim's labels.
	maxToldLabels = 32
	tellTimeout   = 30 * time.Second
)

// Teller tells the engine what the cluster of the primary knows of the members' claims.
type Teller struct {
	// Client reads from a cache.
	Client client.Reader
	// Replicator is the client of a node's replicator; nil if it cannot be reached.
	Replicator func(node string) sidecarpb.SidecarClient
}

// Pass tells what the engine does not know yet. A claim that cannot be told is tried again with the next pass.
func (t *Teller) Pass(ctx context.Context, view View) error {
	volumes := &corev1.PersistentVolumeList{}
	if err := t.Client.List(ctx, volumes); err != nil {
		return err
	}
	byHandle := map[string]*corev1.PersistentVolume{}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if pv.Spec.CSI != nil && pv.Spec.CSI.Driver == plugin.Name && pv.Spec.ClaimRef != nil {
			byHandle[pv.Spec.CSI.VolumeHandle] = pv
		}
	}
	for _, g := range view.Groups {
		if !writable(g.Status) {
			continue
		}
		for _, v := range g.Status.GetVolumes() {
			pv := byHandle[v.GetVolumeId()]
			if pv == nil {
				continue
			}
			claim := &corev1.PersistentVolumeClaim{}
			key := client.ObjectKey{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name}
			if err := t.Client.Get(ctx, key, claim); err != nil || claim.Spec.VolumeName != pv.Name {
				continue // not bound yet, or deleted: the copy keeps what it was told
			}
			t.tell(ctx, g.Node, v, describe(pv, claim))
		}
	}
	return nil
}

func writable(g *sidecarpb.GroupStatus) bool {
	if g.GetRollingBack() {
		return false
	}
	switch g.GetState() {
	case sidecarpb.GroupState_GROUP_STATE_DEMOTED, sidecarpb.GroupState_GROUP_STATE_DIVERGED,
		sidecarpb.GroupState_GROUP_STATE_FAILED:
		return false
	}
	return g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetPeer() != ""
}

func (t *Teller) tell(ctx context.Context, node string, v *sidecarpb.VolumeStatus, claim *sidecarpb.Claim) {
	if proto.Equal(v.GetClaim(), claim) {
		return
	}
	replicator := t.Replicator(node)
	if replicator == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	_, err := replicator.ModifyVolume(ctx, &sidecarpb.ModifyVolumeRequest{VolumeId: v.GetVolumeId(), Claim: claim})
	if err != nil {
		klog.ErrorS(err, "The engine does not know of a change of a claim", "claim", claim.GetNamespace()+"/"+claim.GetName(),
			"volume", v.GetVolumeId(), "node", node)
	}
}

// describe is what another cluster needs to make the same claim.
func describe(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) *sidecarpb.Claim {
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	c := &sidecarpb.Claim{Name: claim.Name, Namespace: claim.Namespace, Volume: pv.Name,
		StorageClass: pv.Spec.StorageClassName, RequestBytes: request.Value()}
	c.Block = claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
	for _, mode := range claim.Spec.AccessModes {
		c.AccessModes = append(c.AccessModes, string(mode))
	}
	for _, key := range slices.Sorted(maps.Keys(claim.Labels)) {
		if reserved(key) || len(c.Labels) == maxToldLabels {
			continue
		}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[key] = claim.Labels[key]
	}
	return c
}
