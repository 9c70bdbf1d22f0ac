package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// owner is the field owner of what waits.
const owner = v1alpha1.ManagedByOperator + "-claims"

// removalPatience is how long a volume must be out of its group before its objects are removed.
const removalPatience = 30 * time.Second

// Group is a group at the engine of a node.
type Group struct {
	Node   string
	Status *sidecarpb.GroupStatus
}

// View is what the nodes last said. Complete: every node answers.
type View struct {
	Groups   []Group
	Complete bool
	// Untold are nodes that answer and cannot tell of their groups.
	Untold map[string]bool
}

// Waiter makes the objects that wait for a failover.
type Waiter struct {
	// Client reads from a cache and writes.
	Client client.Client
	// Live reads from the API server. It is asked before an object is made.
	Live   client.Reader
	Events events.EventRecorder
	// Namespace is the operator's own.
	Namespace string
	Now       func() time.Time

	// out is since when a volume has been seen outside of its group, by the name of its PersistentVolume.
	out map[string]time.Time
	// groupsOut is since when none of a ConsistencyGroup's groups has been at the engine.
	groupsOut map[client.ObjectKey]time.Time
	// refused are writes that the API server refused, by object, with what was asked for. They are not repeated.
	refused map[string]string
}

// cluster is what a pass reads once.
type cluster struct {
	sites   map[string]*v1alpha1.RemoteSite
	classes map[string]bool
	volumes map[string]*corev1.PersistentVolume // of this driver, by handle
	byName  map[string]*corev1.PersistentVolume
	// known are groups at the engine that a ConsistencyGroup stands for. named are the namespaces of objects that name a
	// group, by its name. A person can name any group, so that counts in the namespace of its claims only.
	known map[string]bool
	named map[string][]string
}

// promotedUnseen reports that a group became primary here before this cluster had anything of it: before the operator
// was installed, or before the RemoteSite accepted its claims. Nothing of it is then in this cluster but what an
// interrupted pass has made. In every other case the objects of a primary belong to the cluster, and what is missing
// was deleted by a person who may.
func (c *cluster) promotedUnseen(site *v1alpha1.RemoteSite, g *sidecarpb.GroupStatus) bool {
	if g.GetRole() != sidecarpb.Role_ROLE_PRIMARY || c.known[g.GetName()] {
		return false
	}
	return !slices.ContainsFunc(g.GetVolumes(), func(v *sidecarpb.VolumeStatus) bool {
		pv := c.volumes[v.GetVolumeId()]
		return pv != nil && !(ours(pv) && pv.Annotations[annotationGroup] == g.GetName()) ||
			slices.Contains(c.named[g.GetName()], site.Spec.Map.Namespace(v.GetClaim().GetNamespace()))
	})
}

// Pass makes what is missing, follows what changed, and reports what is in the way. Errors are those of reading; what
// goes wrong with one claim is reported in the condition of its site and keeps no other from being made.
func (w *Waiter) Pass(ctx context.Context, view View) error {
	if w.out == nil {
		w.out, w.refused = map[string]time.Time{}, map[string]string{}
	}
	c, err := w.read(ctx)
	if err != nil {
		return err
	}
	problems := map[string][]*refusal{}
	copies := map[client.ObjectKey]*waitingGroup{}
	for _, g := range view.Groups {
		site := c.sites[g.Status.GetPeer()]
		if site == nil || g.Status.GetRole() != sidecarpb.Role_ROLE_SECONDARY && !c.promotedUnseen(site, g.Status) {
			continue
		}
		primary, failed := g.Status.GetRole() == sidecarpb.Role_ROLE_PRIMARY, false
		var whole []*pair // of all volumes that the site accepts
		for _, v := range g.Status.GetVolumes() {
			p, err := pairOf(site, w.Namespace, g.Node, g.Status, v)
			if p == nil {
				continue
			}
			if err == nil {
				whole = append(whole, p)
				err = w.wait(ctx, c, p)
			}
			if r := asRefusal(p, err); r != nil {
				problems[site.Name] = append(problems[site.Name], r)
				failed = true
			}
		}
		// The ConsistencyGroup of a group that is primary ends its way here, so it comes when everything is there.
		if len(whole) == len(g.Status.GetVolumes()) && !(primary && failed) {
			addCopy(copies, whole)
		}
	}
	if view.Complete {
		w.removeLeft(ctx, c, view)
	}
	if err := w.waitGroups(ctx, copies, view); err != nil {
		return err
	}
	for name, site := range c.sites {
		if err := w.report(ctx, site, problems[name]); err != nil {
			klog.ErrorS(err, "The condition of a RemoteSite cannot be written", "site", name)
		}
	}
	return nil
}

func asRefusal(p *pair, err error) *refusal {
	var r *refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return r
	}
	return &refusal{v1alpha1.ReasonFailed, fmt.Sprintf("claim %s of %s: %v", p, p.site, err)}
}

func (w *Waiter) read(ctx context.Context) (*cluster, error) {
	c := &cluster{sites: map[string]*v1alpha1.RemoteSite{}, classes: map[string]bool{},
		volumes: map[string]*corev1.PersistentVolume{}, byName: map[string]*corev1.PersistentVolume{},
		known: map[string]bool{}, named: map[string][]string{}}
	sites, classes, volumes := &v1alpha1.RemoteSiteList{}, &storagev1.StorageClassList{}, &corev1.PersistentVolumeList{}
	groups := &v1alpha1.ConsistencyGroupList{}
	for _, list := range []client.ObjectList{sites, classes, volumes, groups} {
		if err := w.Client.List(ctx, list); err != nil {
			return nil, err
		}
	}
	for i := range sites.Items {
		c.sites[sites.Items[i].Name] = &sites.Items[i]
	}
	for _, g := range groups.Items {
		for _, name := range g.Spec.EngineGroups {
			c.named[name] = append(c.named[name], g.Namespace)
		}
		for _, e := range g.Status.EngineGroups {
			c.known[e.Name] = true
		}
	}
	for i := range classes.Items {
		c.classes[classes.Items[i].Name] = true
	}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		c.byName[pv.Name] = pv
		if pv.Spec.CSI != nil && pv.Spec.CSI.Driver == plugin.Name {
			c.volumes[pv.Spec.CSI.VolumeHandle] = pv
		}
	}
	return c, nil
}

// wait makes one pair, or follows what changed.
func (w *Waiter) wait(ctx context.Context, c *cluster, p *pair) error {
	pv, err := w.usableVolume(c, p)
	if err != nil {
		return err
	}
	if pv == nil {
		return w.make(ctx, c, p)
	}
	if err := w.followVolume(ctx, pv, p); err != nil || !p.bound {
		return err
	}
	claim := &corev1.PersistentVolumeClaim{}
	key := client.ObjectKey{Namespace: p.namespace, Name: p.claim}
	switch err := w.Client.Get(ctx, key, claim); {
	case apierrors.IsNotFound(err) && ours(pv):
		return w.makeClaim(ctx, pv, p)
	case apierrors.IsNotFound(err):
		return nil // the PersistentVolume is another one's, who decides about its claim
	case err != nil:
		return err
	}
	return w.followClaim(ctx, claim, p)
}

// usableVolume returns the PersistentVolume of the pair, nil if there is none, or a refusal if one is in the way.
func (w *Waiter) usableVolume(c *cluster, p *pair) (*corev1.PersistentVolume, error) {
	conflict := func(format string, args ...any) (*corev1.PersistentVolume, error) {
		return nil, &refusal{v1alpha1.ReasonClaimConflict, fmt.Sprintf("claim %s of %s: ", p, p.site) +
			fmt.Sprintf(format, args...)}
	}
	pv := c.volumes[p.handle]
	if pv == nil {
		if other := c.byName[p.volume]; other != nil {
			return conflict("the PersistentVolume %s is there with another volume", other.Name)
		}
		return nil, nil
	}
	ref := pv.Spec.ClaimRef
	if ref != nil && (ref.Namespace != p.namespace || ref.Name != p.claim) {
		return conflict("the PersistentVolume %s has its volume %s for the claim %s/%s", pv.Name, p.handle, ref.Namespace,
			ref.Name)
	}
	p.volume = pv.Name
	return pv, nil
}

// ours reports whether this package made an object, and nothing else has taken it over since.
func ours(o client.Object) bool {
	labels := o.GetLabels()
	return labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByOperator && labels[v1alpha1.LabelRemoteSite] != ""
}

// make makes a namespace and a PersistentVolume. The claim follows in the next pass, when the cache has them.
func (w *Waiter) make(ctx context.Context, c *cluster, p *pair) error {
	if p.class != "" && !c.classes[p.class] {
		return &refusal{v1alpha1.ReasonStorageClassMissing, fmt.Sprintf("claim %s of %s: this cluster has no StorageClass "+
			"%s; make it, or map it in spec.map.storageClasses", p, p.site, p.class)}
	}
	if err := w.makeNamespace(ctx, p); err != nil {
		return err
	}
	err := w.Live.Get(ctx, client.ObjectKey{Name: p.volume}, &corev1.PersistentVolume{})
	if !apierrors.IsNotFound(err) {
		return err // the cache has it soon
	}
	if _, err := w.apply(ctx, "PersistentVolume", "", p.volume, p.volumeFields(), ""); err != nil || !p.bound {
		return err
	}
	// The claim in the same pass, unless another one is there.
	err = w.Live.Get(ctx, client.ObjectKey{Namespace: p.namespace, Name: p.claim}, &corev1.PersistentVolumeClaim{})
	if apierrors.IsNotFound(err) {
		return w.applyClaim(ctx, p)
	}
	return err
}

func (w *Waiter) makeNamespace(ctx context.Context, p *pair) error {
	if err := w.Client.Get(ctx, client.ObjectKey{Name: p.namespace}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		return err
	}
	if err := w.Live.Get(ctx, client.ObjectKey{Name: p.namespace}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		return err
	}
	_, err := w.apply(ctx, "Namespace", "", p.namespace, map[string]any{"metadata": map[string]any{
		"labels": p.ownLabels()}}, "")
	return err
}

// makeClaim makes the claim of a PersistentVolume that waits already. If it waited for a claim that is gone, it still
// has the uid of that one, and binds no other.
func (w *Waiter) makeClaim(ctx context.Context, pv *corev1.PersistentVolume, p *pair) error {
	err := w.Live.Get(ctx, client.ObjectKey{Namespace: p.namespace, Name: p.claim}, &corev1.PersistentVolumeClaim{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	if !pv.DeletionTimestamp.IsZero() {
		return nil
	}
	if pv.Spec.ClaimRef.UID != "" {
		free := pv.DeepCopy()
		free.Spec.ClaimRef.UID, free.Spec.ClaimRef.ResourceVersion = "", ""
		patch := client.MergeFromWithOptions(pv, client.MergeFromWithOptimisticLock{})
		if err := w.Client.Patch(ctx, free, patch, client.FieldOwner(owner)); err != nil {
			return err
		}
	}
	return w.applyClaim(ctx, p)
}

func (w *Waiter) applyClaim(ctx context.Context, p *pair) error {
	made, err := w.apply(ctx, "PersistentVolumeClaim", p.namespace, p.claim, p.claimFields(), "")
	if err != nil {
		return err
	}
	if p.primary {
		w.Events.Eventf(made, nil, corev1.EventTypeNormal, "Promoted", "Wait", "Claim of site %s. Its volume %s is in the "+
			"group %s, which is primary here", p.site, p.handle, p.group)
		return nil
	}
	w.Events.Eventf(made, nil, corev1.EventTypeNormal, "WaitsForFailover", "Wait", "Claim of site %s. Its volume %s is a "+
		"copy in the group %s, which is secondary here, so pods cannot mount it yet. To fail over, at this site: kubectl "+
		"slipstream failover %s -n %s; without a ConsistencyGroup in the namespace: slipctl group promote %s", p.site,
		p.handle, p.group, groupName(p.group, p.remote, p.namespace), p.namespace, p.group)
	return nil
}

// followVolume applies a larger size, if the PersistentVolume is this package's.
func (w *Waiter) followVolume(ctx context.Context, pv *corev1.PersistentVolume, p *pair) error {
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	if !ours(pv) || size.Value() >= p.size {
		return nil
	}
	_, err := w.apply(ctx, "PersistentVolume", "", pv.Name, p.volumeFields(), string(pv.UID))
	return err
}

// followClaim applies a larger request and other labels, if the claim is this package's, and reports a claim that is
// another volume's.
func (w *Waiter) followClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, p *pair) error {
	conflict := func(format string, args ...any) error {
		return &refusal{v1alpha1.ReasonClaimConflict, fmt.Sprintf("claim %s of %s: ", p, p.site) +
			fmt.Sprintf(format, args...)}
	}
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	class := ""
	if claim.Spec.StorageClassName != nil {
		class = *claim.Spec.StorageClassName
	}
	switch {
	case claim.Spec.VolumeName != "" && claim.Spec.VolumeName != p.volume:
		return conflict("the claim of that name is bound to %s; delete it, or map the namespace to another one",
			claim.Spec.VolumeName)
	case claim.Spec.VolumeName == "" && class != p.class:
		return conflict("the claim of that name has the StorageClass %q, so it does not bind to %s", class, p.volume)
	case claim.Spec.VolumeName == "" && request.Value() > p.size:
		return conflict("the claim of that name asks for %s, and the copy has %s", request.String(), quantity(p.size))
	case !ours(claim) || !claim.DeletionTimestamp.IsZero():
		return nil
	}
	set := strings.Split(claim.Annotations[annotationLabels], ",")
	maps.DeleteFunc(p.labels, func(key, value string) bool {
		have, ok := claim.Labels[key]
		return ok && have != value && !slices.Contains(set, key) // another manager's
	})
	p.request = max(p.request, request.Value()) // claims do not shrink
	if request.Value() == p.request && claim.Annotations[annotationLabels] == p.labelKeys() && hasLabels(claim, p) {
		return nil
	}
	_, err := w.apply(ctx, "PersistentVolumeClaim", claim.Namespace, claim.Name, p.claimFields(), string(claim.UID))
	if apierrors.IsConflict(err) {
		// Another manager has set one of the labels since.
		maps.DeleteFunc(p.labels, func(key, value string) bool { return claim.Labels[key] != value })
		_, err = w.apply(ctx, "PersistentVolumeClaim", claim.Namespace, claim.Name, p.claimFields(), string(claim.UID))
	}
	return err
}

// hasLabels reports whether an object has the labels of the pair.
func hasLabels(o client.Object, p *pair) bool {
	for key, value := range p.labels {
		if o.GetLabels()[key] != value {
			return false
		}
	}
	return true
}

// apply writes an object by server-side apply. With a uid it must be that object. What the API server refused for good
// is not asked for again until something else is wanted.
func (w *Waiter) apply(ctx context.Context, kind, namespace, name string, fields map[string]any,
	uid string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{Object: fields}
	u.SetAPIVersion("v1")
	u.SetKind(kind)
	u.SetName(name)
	u.SetNamespace(namespace)
	if uid != "" {
		if err := unstructured.SetNestedField(u.Object, uid, "metadata", "uid"); err != nil {
			return nil, err
		}
	}
	object, wanted := kind+" "+namespace+"/"+name, fmt.Sprint(fields)
	if why, ok := w.refused[object]; ok && strings.HasPrefix(why, wanted+"\n") {
		return nil, errors.New(strings.TrimPrefix(why, wanted+"\n"))
	}
	options := []client.ApplyOption{client.FieldOwner(owner)}
	if kind == "PersistentVolume" && uid != "" {
		options = append(options, client.ForceOwnership) // the resizer has set the capacity
	}
	// Else without force: a field of a claim that another manager has set to something else stays.
	err := w.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), options...)
	if apierrors.IsConflict(err) || apierrors.IsInvalid(err) || apierrors.IsForbidden(err) && uid != "" {
		w.refused[object] = wanted + "\n" + err.Error()
	} else {
		delete(w.refused, object)
	}
	if err == nil {
		klog.InfoS("Applied what waits for a failover", "kind", kind, "namespace", namespace, "name", name)
	}
	return u, err
}

// removeLeft removes the objects of volumes that their primary took out of the group.
func (w *Waiter) removeLeft(ctx context.Context, c *cluster, view View) {
	left := map[string]bool{}
	for _, g := range view.Groups {
		// One that rolls back opens as primary, or with other volumes than it has now: its primary took none of them out.
		if g.Status.GetRole() != sidecarpb.Role_ROLE_SECONDARY || g.Status.GetRollingBack() {
			continue
		}
		for handle, pv := range c.volumes {
			if !ours(pv) || pv.Annotations[annotationGroup] != g.Status.GetName() {
				continue
			}
			if !slices.ContainsFunc(g.Status.GetVolumes(), func(v *sidecarpb.VolumeStatus) bool {
				return v.GetVolumeId() == handle
			}) {
				left[pv.Name] = true
			}
		}
	}
	// A volume that went into another group has a pair of the same name there.
	for _, g := range view.Groups {
		for _, v := range g.Status.GetVolumes() {
			if pv := c.volumes[v.GetVolumeId()]; pv != nil {
				delete(left, pv.Name)
			}
		}
	}
	for name := range w.out {
		if !left[name] {
			delete(w.out, name)
		}
	}
	for name := range left {
		since, seen := w.out[name]
		switch {
		case !seen:
			w.out[name] = w.Now()
		case w.Now().Sub(since) >= removalPatience:
			if err := w.remove(ctx, c.byName[name]); err != nil {
				klog.ErrorS(err, "What waited for a volume that left its group cannot be removed", "volume", name)
			}
		}
	}
}

// remove deletes the claim first, and the PersistentVolume when no claim has it any more.
func (w *Waiter) remove(ctx context.Context, pv *corev1.PersistentVolume) error {
	ref := pv.Spec.ClaimRef
	claim := &corev1.PersistentVolumeClaim{}
	err := w.Live.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, claim)
	switch {
	case err == nil && claim.Spec.VolumeName == pv.Name && !ours(claim):
		return nil // a claim of another manager uses it
	case err == nil && claim.Spec.VolumeName == pv.Name && claim.DeletionTimestamp.IsZero():
		return w.delete(ctx, claim)
	case err == nil && claim.Spec.VolumeName == pv.Name:
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return err
	}
	return w.delete(ctx, pv)
}

func (w *Waiter) delete(ctx context.Context, o client.Object) error {
	uid, version := o.GetUID(), o.GetResourceVersion()
	err := w.Client.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
	if err == nil {
		klog.InfoS("Removed what waited for a volume that left its group", "namespace", o.GetNamespace(), "name", o.GetName())
	}
	return client.IgnoreNotFound(err)
}
