package membership

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Reasons why a claim is not replicated: of Excluded, and the label reason of slipstream_claims_unprotected.
const (
	ReasonOptedOut     = "OptedOut"
	ReasonOtherDriver  = "OtherDriver"
	ReasonEphemeral    = "Ephemeral"
	ReasonTemporary    = "Temporary"
	ReasonRestore      = "Restore"
	ReasonShared       = "SharedAccess"
	ReasonNoGroup      = "NoGroup"
	ReasonUnknownGroup = "UnknownGroup"
)

// Objects are those that decide of the claims of one namespace. Read them with Read.
type Objects struct {
	// Namespace is nil if it is not there.
	Namespace *corev1.Namespace
	Groups    []*v1alpha1.ConsistencyGroup
	Sites     map[string]*v1alpha1.RemoteSite
	Claims    []*corev1.PersistentVolumeClaim
	// Volumes are the PersistentVolumes of the driver that name a claim of the namespace, by their name.
	Volumes map[string]*corev1.PersistentVolume
	// Provisioners are those of the StorageClasses.
	Provisioners map[string]string
}

// Verdict is what is decided of a claim: the group that it belongs to, or why it belongs to none.
type Verdict struct {
	Group   *v1alpha1.ConsistencyGroup
	Reason  string
	Message string
}

func excluded(reason, format string, args ...any) Verdict {
	return Verdict{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// temporaryOwners are kinds of owners of claims that exist for the time of a copy.
var temporaryOwners = map[string]string{
	"ReplicationSource": "VolSync", "ReplicationDestination": "VolSync", "DataVolume": "",
	"PersistentVolumeClaim": "a populator of volumes", "DataUpload": "a backup", "DataDownload": "a restore",
}

// Judge decides of one claim. member is the name of the group of the namespace that has its volume already, "" for
// none: what a member was made from does not count, and it stays where the selector says nothing.
func (in *Objects) Judge(claim *corev1.PersistentVolumeClaim, member string) Verdict {
	replicated := member != ""
	if driver := in.driverOf(claim); driver != plugin.Name {
		return excluded(ReasonOtherDriver, "its driver is %s, not %s", cmp.Or(driver, "not known yet"), plugin.Name)
	}
	if of := claim.Labels[v1alpha1.LabelTestOf]; of != "" {
		return excluded(ReasonTemporary, "it shows a copy for a test failover of namespace %s", of)
	}
	wish := claim.Labels[v1alpha1.LabelReplicate]
	if wish == "false" {
		return excluded(ReasonOptedOut, "it has the label %s: \"false\"", v1alpha1.LabelReplicate)
	}
	named := claim.Labels[v1alpha1.LabelConsistencyGroup]
	if wish != "true" && named == "" && !replicated {
		for _, owner := range claim.OwnerReferences {
			if owner.Kind == "Pod" {
				return excluded(ReasonEphemeral, "it lives as long as pod %s; label it %s: \"true\" to replicate it", owner.Name,
					v1alpha1.LabelReplicate)
			}
			if what := temporaryOwners[owner.Kind]; what != "" {
				return excluded(ReasonTemporary, "it belongs to %s %s and is temporary for %s; label it %s: \"true\" to replicate "+
					"it",
					owner.Kind, owner.Name, what, v1alpha1.LabelReplicate)
			}
		}
		if name := snapshotOf(claim); name != "" {
			return excluded(ReasonRestore, "it was made from VolumeSnapshot %s; label it %s: \"true\" to replicate it", name,
				v1alpha1.LabelReplicate)
		}
	}
	if !replicated && slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteMany) {
		return excluded(ReasonShared, "its access mode is %s, and volumes of %s are written to on one node only",
			corev1.ReadWriteMany, plugin.Name)
	}
	if named != "" {
		for _, g := range in.Groups {
			if g.Name == named && g.DeletionTimestamp.IsZero() {
				return Verdict{Group: g}
			}
		}
		return excluded(ReasonUnknownGroup, "its label %s names group %s, which is not in the namespace",
			v1alpha1.LabelConsistencyGroup, named)
	}
	for _, g := range in.byPrecedence() {
		if selected, err := selects(g, claim); selected || err != nil && g.Name == member {
			return Verdict{Group: g}
		}
	}
	return excluded(ReasonNoGroup, "no ConsistencyGroup of the namespace selects it; to replicate all claims of the "+
		"namespace: kubectl label namespace %s %s=SITE", claim.Namespace, v1alpha1.LabelReplicateTo)
}

// snapshotOf returns the snapshot that a claim was made from; of another namespace it is in dataSourceRef only.
func snapshotOf(claim *corev1.PersistentVolumeClaim) string {
	const kind = "VolumeSnapshot"
	if source := claim.Spec.DataSource; source != nil && source.Kind == kind {
		return source.Name
	}
	if source := claim.Spec.DataSourceRef; source != nil && source.Kind == kind {
		return source.Name
	}
	return ""
}

// byPrecedence returns the groups that claims without a group's label can belong to: those of people before those of
// the operator, older ones first.
func (in *Objects) byPrecedence() []*v1alpha1.ConsistencyGroup {
	groups := slices.DeleteFunc(slices.Clone(in.Groups), func(g *v1alpha1.ConsistencyGroup) bool {
		// A group that the operator made for the label of claims selects by that label only.
		return !g.DeletionTimestamp.IsZero() || Managed(g) && g.Name != g.Namespace
	})
	slices.SortFunc(groups, func(a, b *v1alpha1.ConsistencyGroup) int {
		byHand := func(g *v1alpha1.ConsistencyGroup) int {
			if Managed(g) {
				return 1
			}
			return 0
		}
		return cmp.Or(byHand(a)-byHand(b), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Name, b.Name))
	})
	return groups
}

// Managed reports whether the operator has made the group for a label, and may delete it.
func Managed(g *v1alpha1.ConsistencyGroup) bool {
	return g.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByOperator
}

// selects reports whether the selector of a group matches a claim; an error where the selector says nothing.
func selects(g *v1alpha1.ConsistencyGroup, claim *corev1.PersistentVolumeClaim) (bool, error) {
	if g.Spec.Claims == nil {
		return true, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(g.Spec.Claims)
	return err == nil && selector.Matches(labels.Set(claim.Labels)), err
}

// driverOf returns the driver of a claim: of its volume, or of its class as long as it has none.
func (in *Objects) driverOf(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.VolumeName != "" {
		if volume := in.Volumes[claim.Spec.VolumeName]; volume != nil && volume.Spec.CSI != nil {
			return volume.Spec.CSI.Driver
		}
	}
	if provisioner := claim.Annotations["volume.kubernetes.io/storage-provisioner"]; provisioner != "" {
		return provisioner
	}
	if class := claim.Spec.StorageClassName; class != nil {
		return in.Provisioners[*class]
	}
	return ""
}

// VolumeOf returns the volume that a claim is bound to, nil while it is not.
func (in *Objects) VolumeOf(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	volume := in.Volumes[claim.Spec.VolumeName]
	if claim.Status.Phase != corev1.ClaimBound || volume == nil || volume.Spec.CSI == nil {
		return nil
	}
	return volume
}

// NodeOf returns the node that holds a volume.
func NodeOf(volume *corev1.PersistentVolume) string {
	affinity := volume.Spec.NodeAffinity
	if affinity == nil || affinity.Required == nil {
		return ""
	}
	for _, term := range affinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == plugin.TopologyKey && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// Wanted returns the groups that the labels of the namespace and of its claims ask for: the one of the namespace, which
// has its name, and those that claims name. Without the label of the namespace there are none: a claim's label alone
// decides nothing.
func (in *Objects) Wanted() (site string, names []string) {
	if in.Namespace == nil {
		return "", nil
	}
	site = in.Namespace.Labels[v1alpha1.LabelReplicateTo]
	if site == "" {
		return "", nil
	}
	names = []string{in.Namespace.Name}
	for _, claim := range in.Claims {
		name := claim.Labels[v1alpha1.LabelConsistencyGroup]
		if name != "" && claim.Labels[v1alpha1.LabelReplicate] != "false" && in.driverOf(claim) == plugin.Name {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return site, slices.Compact(names)
}

// Allowed returns why a group may not replicate to its site; "" if it may.
func (in *Objects) Allowed(g *v1alpha1.ConsistencyGroup) (reason, message string) {
	if _, err := metav1.LabelSelectorAsSelector(g.Spec.Claims); err != nil {
		return "InvalidSelector", fmt.Sprintf("spec.claims is no selector: %v; the present members stay, and none is "+
			"added, until it is corrected: kubectl -n %s edit cg %s", err, g.Namespace, g.Name)
	}
	site := in.Sites[g.Spec.RemoteSite]
	if site == nil {
		return "RemoteSiteMissing", fmt.Sprintf("there is no RemoteSite %s; an administrator has to make it",
			g.Spec.RemoteSite)
	}
	if in.Namespace == nil {
		return "NamespaceMissing", "the namespace is not there"
	}
	if in.Namespace.Labels[v1alpha1.LabelReplicateTo] == site.Name {
		return "", ""
	}
	// A group that waited here for a failover replicates back to where it came from.
	if accept := site.Spec.Accept; accept != nil && g.Labels[v1alpha1.LabelRemoteSite] == site.Name &&
		len(g.Spec.EngineGroups) > 0 && accept.Takes(in.Namespace.Name) {
		return "", ""
	}
	if site.Spec.Namespaces != nil {
		if selector, err := metav1.LabelSelectorAsSelector(site.Spec.Namespaces); err == nil &&
			selector.Matches(labels.Set(in.Namespace.Labels)) {
			return "", ""
		}
	}
	return "NamespaceNotAdmitted", fmt.Sprintf("RemoteSite %s does not admit the namespace; an administrator has to "+
		"label "+
		"the namespace (kubectl label namespace %s %s=%s) or to extend spec.namespaces of the RemoteSite", site.Name,
		in.Namespace.Name, v1alpha1.LabelReplicateTo, site.Name)
}
