package groups

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const (
	driverName  = "csi.slipstream.dev"
	topologyKey = "topology.slipstream.dev/node"
)

// adoption is how a group's volumes are to be used in a cluster that did not make them.
type adoption struct {
	node         string
	storageClass string
	accessMode   string
	reclaim      string
}

func (c *cli) groupPVs() *cobra.Command {
	var a adoption
	cmd := &cobra.Command{
		Use:   "pvs NAME",
		Short: "Print PersistentVolumes and claims for a group's volumes in this cluster",
		Long: "After a promotion the volumes are at this site, but Kubernetes has no objects for them. Apply the output in " +
			"the\n" +
			"cluster of this site before you start the application. Claims have the names and namespaces of the other site.",
		Example: "  slipctl group pvs shop --node node-b | kubectl apply -f -",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				g, err := group(ctx, sidecar, given[0])
				if err != nil {
					return err
				}
				if a.node, err = c.nodeOf(ctx, given[0]); err != nil {
					return err
				}
				if g.GetRole() != sidecarpb.Role_ROLE_PRIMARY {
					fmt.Fprintf(c.Err, "Group %s is %s here: its volumes cannot be used before `slipctl group promote %s`.\n",
						g.GetName(), g.GetRole().Word(), g.GetName())
				}
				return c.printManifests(a.manifests(g))
			})
		},
	}
	cmd.Flags().StringVar(&a.storageClass, "storage-class", "", "storageClassName of volumes and claims, as in the "+
		"application's claims")
	frame.AddEnum(cmd, cmd.Flags(), &a.accessMode, "access-mode", "", "access mode of volumes and claims",
		string(corev1.ReadWriteOnce), string(corev1.ReadWriteOncePod))
	frame.AddEnum(cmd, cmd.Flags(), &a.reclaim, "reclaim-policy", "", "what happens to a volume when its claim is deleted",
		string(corev1.PersistentVolumeReclaimRetain), string(corev1.PersistentVolumeReclaimDelete))
	return cmd
}

// nodeOf is the node that has a group: the pod's, or the one that was given beside a socket.
func (c *cli) nodeOf(ctx context.Context, group string) (string, error) {
	if !c.Kube.Set() {
		if c.Kube.Node == "" {
			return "", frame.Usagef("--node is missing: Kubernetes' name of the node that this socket is on")
		}
		return c.Kube.Node, nil
	}
	conn, err := c.Connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.NodeOf(ctx, group)
}

// manifests returns a volume and, where it is known whose it is, a claim for each of the group's volumes.
func (a *adoption) manifests(g *sidecarpb.GroupStatus) []any {
	var objects []any
	for _, v := range g.GetVolumes() {
		pv := a.persistentVolume(v)
		objects = append(objects, pv)
		if v.GetClaimName() != "" {
			objects = append(objects, a.claim(v, pv))
		}
	}
	return objects
}

func (a *adoption) persistentVolume(v *sidecarpb.VolumeStatus) *corev1.PersistentVolume {
	name := v.GetPersistentVolume()
	if name == "" {
		name = v.GetVolumeId()
	}
	mode := volumeMode(v)
	pv := &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			// With reclaim policy Delete the provisioner deletes only what one of its name made.
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driverName},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.GetSizeBytes(),
				resource.BinarySI)},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(a.accessMode)},
			VolumeMode:                    &mode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimPolicy(a.reclaim),
			StorageClassName:              a.storageClass,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: driverName, VolumeHandle: v.GetVolumeId()},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: topologyKey, Operator: corev1.NodeSelectorOpIn,
						Values: []string{a.node}}},
				}}}},
		},
	}
	if mode == corev1.PersistentVolumeFilesystem {
		pv.Spec.CSI.FSType = v.GetFsType()
	}
	if v.GetClaimName() != "" {
		// Keeps another claim from taking the volume.
		pv.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim",
			Namespace: v.GetClaimNamespace(), Name: v.GetClaimName()}
	}
	return pv
}

func (a *adoption) claim(v *sidecarpb.VolumeStatus, pv *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: v.GetClaimName(), Namespace: v.GetClaimNamespace()},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      pv.Spec.AccessModes,
			VolumeMode:       pv.Spec.VolumeMode,
			Resources:        corev1.VolumeResourceRequirements{Requests: pv.Spec.Capacity},
			StorageClassName: &a.storageClass,
			VolumeName:       pv.Name,
		},
	}
}

// volumeMode is what the claim asked for. A volume that is known to have no claim and no file system is a raw device.
func volumeMode(v *sidecarpb.VolumeStatus) corev1.PersistentVolumeMode {
	if v.GetBlock() || v.GetClaimName() == "" && v.GetFsType() == "" {
		return corev1.PersistentVolumeBlock
	}
	return corev1.PersistentVolumeFilesystem
}

// printManifests prints objects for kubectl apply: as YAML, or with --output json as a list.
func (c *cli) printManifests(objects []any) error {
	var bare []map[string]any
	for _, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			return err
		}
		var object map[string]any
		if err := json.Unmarshal(text, &object); err != nil {
			return err
		}
		delete(object, "status") // empty, and not a person's to set
		bare = append(bare, object)
	}
	if c.Output == frame.OutputJSON {
		return frame.EncodeJSON(c.Out, map[string]any{"apiVersion": "v1", "kind": "List", "items": bare}, "  ")
	}
	for _, object := range bare {
		text, err := yaml.Marshal(object)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "---\n%s", text)
	}
	return nil
}
