package backup

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// acceptedLabels are keys of claims' labels that are taken over from any site. The key of a manager is not among them:
// it says who manages the object here.
var acceptedLabels = []string{"app", "app.kubernetes.io/component", "app.kubernetes.io/instance",
	"app.kubernetes.io/name", "app.kubernetes.io/part-of", "app.kubernetes.io/version"}

// Annotations of a PersistentVolume that waits.
const (
	annotationGroup  = "slipstream.dev/group"  // at the engine
	annotationLabels = "slipstream.dev/labels" // keys of the labels that came from the other site
)

// pair is what waits for one volume.
type pair struct {
	site, group, node string
	handle, fsType    string
	volume            string // name of the PersistentVolume
	namespace, claim  string
	remote            string // the namespace at the other site
	class             string
	modes             []corev1.PersistentVolumeAccessMode
	block             bool
	size, request     int64
	labels            map[string]string
	bound             bool // with a claim
	primary           bool // the group was promoted here already
}

func (p *pair) String() string { return p.namespace + "/" + p.claim }

// refusal is why nothing is made for a claim. It is shown as a condition.
type refusal struct{ reason, text string }

func (r *refusal) Error() string { return r.text }

// pairOf decides what is made of what the engine says. It returns nil if nothing is to be made, and an error that is a
// *refusal if this cluster does not accept it.
func pairOf(site *v1alpha1.RemoteSite, own, node string, g *sidecarpb.GroupStatus,
	v *sidecarpb.VolumeStatus) (*pair, error) {
	c, accept := v.GetClaim(), site.Spec.Accept
	if c.GetName() == "" || c.GetNamespace() == "" || accept == nil || accept.Claims == v1alpha1.AcceptClaimsNone {
		return nil, nil
	}
	p := &pair{site: site.Name, group: g.GetName(), node: node, handle: v.GetVolumeId(), volume: c.GetVolume(),
		namespace: site.Spec.Map.Namespace(c.GetNamespace()), remote: c.GetNamespace(), claim: c.GetName(),
		class: site.Spec.Map.StorageClass(c.GetStorageClass()), block: c.GetBlock(), size: v.GetSizeBytes(),
		request: c.GetRequestBytes(), bound: accept.Claims != v1alpha1.AcceptClaimsReserve,
		primary: g.GetRole() == sidecarpb.Role_ROLE_PRIMARY}
	if p.volume == "" {
		p.volume = p.handle
	}
	if p.request <= 0 || p.request > p.size {
		p.request = p.size
	}
	if !p.block {
		p.fsType = v.GetFsType()
	}
	for _, mode := range c.GetAccessModes() {
		p.modes = append(p.modes, corev1.PersistentVolumeAccessMode(mode))
	}
	if len(p.modes) == 0 {
		p.modes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	p.labels = accepted(c.GetLabels(), accept.Labels)
	if err := p.check(own, accept); err != nil {
		return p, err
	}
	return p, nil
}

// check says why a cluster does not accept the pair.
func (p *pair) check(own string, accept *v1alpha1.Accept) error {
	refuse := func(reason, format string, args ...any) error {
		return &refusal{reason, fmt.Sprintf("claim %.80q of %s: ", p.String(), p.site) + fmt.Sprintf(format, args...)}
	}
	for what, name := range map[string]string{"claim": p.claim, "PersistentVolume": p.volume} {
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			return refuse(v1alpha1.ReasonNotAccepted, "%.80q is no name of a %s", name, what)
		}
	}
	switch {
	case len(validation.IsDNS1123Label(p.namespace)) > 0:
		return refuse(v1alpha1.ReasonNotAccepted, "%.80q is no name of a namespace", p.namespace)
	case strings.HasPrefix(p.namespace, "kube-") || p.namespace == own:
		return refuse(v1alpha1.ReasonNotAccepted, "nothing is made in the namespace %s for another site", p.namespace)
	case !accept.Takes(p.namespace):
		return refuse(v1alpha1.ReasonNotAccepted, "the RemoteSite does not accept claims in the namespace %s; add it to "+
			"spec.accept.namespaces, or map it", p.namespace)
	}
	return nil
}

// accepted are the labels of the allowlist. A key that ends with "/*" accepts all keys with that prefix, other than
// those that Kubernetes or this driver act on.
func accepted(labels map[string]string, more []string) map[string]string {
	kept := map[string]string{}
	for key, value := range labels {
		if key == v1alpha1.LabelManagedBy || reserved(key) {
			continue
		}
		for _, rule := range slices.Concat(acceptedLabels, more) {
			prefix, all := strings.CutSuffix(rule, "/*")
			if key == rule || all && strings.HasPrefix(key, prefix+"/") {
				kept[key] = value
			}
		}
	}
	return kept
}

// reserved reports whether a label means something to Kubernetes or to this driver.
func reserved(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok || domain == "app.kubernetes.io" {
		return false
	}
	for _, own := range []string{"kubernetes.io", "k8s.io", "slipstream.dev"} {
		if domain == own || strings.HasSuffix(domain, "."+own) {
			return true
		}
	}
	return false
}

// volumeFields are all fields of the PersistentVolume that this package owns.
func (p *pair) volumeFields() map[string]any {
	csi := map[string]any{"driver": plugin.Name, "volumeHandle": p.handle}
	if p.fsType != "" {
		csi["fsType"] = p.fsType
	}
	return map[string]any{
		"metadata": map[string]any{
			"labels": p.ownLabels(),
			"annotations": map[string]any{"pv.kubernetes.io/provisioned-by": plugin.Name,
				annotationGroup: p.group},
		},
		"spec": map[string]any{
			"capacity":    map[string]any{"storage": quantity(p.size)},
			"accessModes": p.accessModes(), "volumeMode": p.volumeMode(),
			"persistentVolumeReclaimPolicy": string(corev1.PersistentVolumeReclaimRetain),
			"storageClassName":              p.class,
			"csi":                           csi,
			// Names only: the claim that binds may be another one of that name than the one that was there before.
			"claimRef": map[string]any{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": p.namespace,
				"name": p.claim},
			"nodeAffinity": map[string]any{"required": map[string]any{"nodeSelectorTerms": []any{map[string]any{
				"matchExpressions": []any{map[string]any{"key": plugin.TopologyKey, "operator": "In",
					"values": []any{p.node}}}}}}},
		},
	}
}

// claimFields are all fields of the claim that this package owns.
func (p *pair) claimFields() map[string]any {
	labels := p.ownLabels()
	for key, value := range p.labels {
		labels[key] = value
	}
	return map[string]any{
		"metadata": map[string]any{"labels": labels, "annotations": map[string]any{annotationLabels: p.labelKeys()}},
		"spec": map[string]any{
			"accessModes": p.accessModes(), "volumeMode": p.volumeMode(), "volumeName": p.volume,
			"storageClassName": p.class,
			"resources":        map[string]any{"requests": map[string]any{"storage": quantity(p.request)}},
		},
	}
}

func (p *pair) ownLabels() map[string]any {
	return map[string]any{v1alpha1.LabelManagedBy: v1alpha1.ManagedByOperator, v1alpha1.LabelRemoteSite: p.site}
}

func (p *pair) labelKeys() string { return strings.Join(slices.Sorted(maps.Keys(p.labels)), ",") }

func (p *pair) accessModes() (modes []any) {
	for _, m := range p.modes {
		modes = append(modes, string(m))
	}
	return modes
}

func (p *pair) volumeMode() string {
	if p.block {
		return string(corev1.PersistentVolumeBlock)
	}
	return string(corev1.PersistentVolumeFilesystem)
}

func quantity(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }
