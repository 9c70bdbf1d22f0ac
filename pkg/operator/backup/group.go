package backup

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// A group whose claims wait gets a ConsistencyGroup in their namespace, so that status and actions work at this site as
// they do at the primary. It has the name that the ConsistencyGroup has there: the operator there puts that name into
// the name of the group at the engine (operator.engineGroupName). A group that was made otherwise has one name for
// both.
//
// The ConsistencyGroup stays when this site becomes primary. It is deleted when none of its groups is at the engine of
// this site any more. Its deletionPolicy is Keep, so its deletion ends nothing at the engine.

// engineDigest is the end of a group's name that an operator chose.
var engineDigest = regexp.MustCompile(`-[a-z2-7]{10}$`)

// groupName is the name of the ConsistencyGroup of a group at the engine, whose claims are in a namespace of the other
// site and of this one.
func groupName(engine, remote, local string) string {
	readable := engineDigest.ReplaceAllString(engine, "")
	if readable == engine {
		return engine
	}
	if readable == remote {
		return local
	}
	if name, ok := strings.CutPrefix(readable, remote+"."); ok && name != "" {
		return name
	}
	return readable
}

// waitingGroup is a ConsistencyGroup that has to be there.
type waitingGroup struct {
	site    string
	engines []string
}

// addCopy adds the ConsistencyGroup of a group at the engine, by the pairs of all of its volumes. There is none if the
// claims are not all in one namespace.
func addCopy(all map[client.ObjectKey]*waitingGroup, pairs []*pair) {
	if len(pairs) == 0 {
		return
	}
	first := pairs[0]
	if slices.ContainsFunc(pairs, func(p *pair) bool { return p.namespace != first.namespace }) {
		return
	}
	key := client.ObjectKey{Namespace: first.namespace, Name: groupName(first.group, first.remote, first.namespace)}
	if len(key.Name) > 63 || len(validation.IsDNS1123Subdomain(key.Name)) > 0 {
		return
	}
	w := all[key]
	if w == nil {
		w = &waitingGroup{site: first.site}
		all[key] = w
	}
	if w.site == first.site && !slices.Contains(w.engines, first.group) {
		w.engines = append(w.engines, first.group)
	}
}

// waitGroups makes the ConsistencyGroups, adds groups at the engine to them, and deletes those that have none left.
func (w *Waiter) waitGroups(ctx context.Context, copies map[client.ObjectKey]*waitingGroup, view View) error {
	list := &v1alpha1.ConsistencyGroupList{}
	if err := w.Client.List(ctx, list); err != nil {
		return err
	}
	there := map[client.ObjectKey]*v1alpha1.ConsistencyGroup{}
	for i := range list.Items {
		there[client.ObjectKeyFromObject(&list.Items[i])] = &list.Items[i]
	}
	for key, wanted := range copies {
		old := there[key]
		if old != nil && (!waits(old) || !old.DeletionTimestamp.IsZero() ||
			containsAll(old.Spec.EngineGroups, wanted.engines)) {
			continue
		}
		if old != nil {
			wanted.engines = append(wanted.engines, old.Spec.EngineGroups...)
		}
		if err := w.applyGroup(ctx, key, wanted); err != nil && !apierrors.IsNotFound(err) {
			klog.ErrorS(err, "The ConsistencyGroup of a copy cannot be made", "group", key)
		}
	}
	if view.Complete {
		w.removeGroups(ctx, there, view)
	}
	return nil
}

// waits reports whether this package made a ConsistencyGroup.
func waits(g *v1alpha1.ConsistencyGroup) bool { return g.Labels[v1alpha1.LabelRemoteSite] != "" }

func containsAll(list, wanted []string) bool {
	return !slices.ContainsFunc(wanted, func(one string) bool { return !slices.Contains(list, one) })
}

func (w *Waiter) applyGroup(ctx context.Context, key client.ObjectKey, wanted *waitingGroup) error {
	slices.Sort(wanted.engines)
	var engines []any
	for _, engine := range slices.Compact(wanted.engines) {
		engines = append(engines, engine)
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"labels": map[string]any{v1alpha1.LabelRemoteSite: wanted.site}},
		"spec": map[string]any{"remoteSite": wanted.site, "engineGroups": engines,
			"deletionPolicy": string(v1alpha1.DeletionKeep)},
	}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ConsistencyGroup"))
	u.SetNamespace(key.Namespace)
	u.SetName(key.Name)
	err := w.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(owner))
	if err == nil {
		klog.InfoS("Applied the ConsistencyGroup of a copy", "group", key, "engineGroups", fmt.Sprint(engines))
	}
	return err
}

// removeGroups deletes the ConsistencyGroups none of whose groups was at the engine for some time.
func (w *Waiter) removeGroups(ctx context.Context, there map[client.ObjectKey]*v1alpha1.ConsistencyGroup, view View) {
	left := map[client.ObjectKey]time.Time{}
	for key, g := range there {
		if !waits(g) || !g.DeletionTimestamp.IsZero() || slices.ContainsFunc(view.Groups, func(at Group) bool {
			return slices.Contains(g.Spec.EngineGroups, at.Status.GetName())
		}) || slices.ContainsFunc(g.Status.EngineGroups, func(e v1alpha1.EngineGroup) bool { return view.Untold[e.Node] }) {
			continue
		}
		since, seen := w.groupsOut[key]
		if !seen {
			since = w.Now()
		}
		left[key] = since
		if w.Now().Sub(since) < removalPatience {
			continue
		}
		if err := w.delete(ctx, g); err != nil {
			klog.ErrorS(err, "The ConsistencyGroup of a copy that is gone cannot be removed", "group", key)
		}
	}
	w.groupsOut = left
}
