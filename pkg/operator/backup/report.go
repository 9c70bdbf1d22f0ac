package backup

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// maxShown bounds how many problems a condition names.
const maxShown = 10

// maxMessageBytes is the limit of the API for a condition's message, less what fmt adds.
const maxMessageBytes = 32000

// report writes the condition ClaimsPresent of a site, if it differs. The event comes with the transition.
func (w *Waiter) report(ctx context.Context, site *v1alpha1.RemoteSite, problems []*refusal) error {
	want := condition(site, problems)
	have := meta.FindStatusCondition(site.Status.Conditions, want.Type)
	switch {
	case have == nil && site.Spec.Accept == nil:
		return nil // nothing is accepted, so nothing is missing
	case have != nil && have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message &&
		have.ObservedGeneration == want.ObservedGeneration:
		return nil
	}
	want.LastTransitionTime = metav1.NewTime(w.Now())
	changed := have == nil || have.Status != want.Status || have.Reason != want.Reason
	if have != nil && have.Status == want.Status {
		want.LastTransitionTime = have.LastTransitionTime
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&want)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"uid": string(site.UID)}, "status": map[string]any{"conditions": []any{fields}}}}
	u.SetAPIVersion(v1alpha1.GroupVersion.String())
	u.SetKind("RemoteSite")
	u.SetName(site.Name)
	if err := w.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(owner),
		client.ForceOwnership); err != nil {
		return err
	}
	if changed && want.Status == metav1.ConditionFalse {
		w.Events.Eventf(site, nil, corev1.EventTypeWarning, want.Reason, "Wait", "%s", want.Message)
	}
	return nil
}

// condition sums up what keeps claims from waiting.
func condition(site *v1alpha1.RemoteSite, problems []*refusal) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionClaimsPresent, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonAllPresent, Message: "every claim of the site that is accepted waits here",
		ObservedGeneration: site.Generation}
	if len(problems) == 0 {
		return c
	}
	slices.SortFunc(problems, func(a, b *refusal) int { return strings.Compare(a.text, b.text) })
	var texts []string
	for i, p := range problems {
		if i == maxShown {
			texts = append(texts, fmt.Sprintf("and %d more", len(problems)-maxShown))
			break
		}
		texts = append(texts, p.text)
	}
	c.Status, c.Message = metav1.ConditionFalse, strings.Join(texts, "; ")
	if len(c.Message) > maxMessageBytes {
		c.Message = strings.ToValidUTF8(c.Message[:maxMessageBytes], "")
	}
	for _, reason := range []string{v1alpha1.ReasonClaimConflict, v1alpha1.ReasonFailed,
		v1alpha1.ReasonStorageClassMissing, v1alpha1.ReasonNotAccepted} {
		if slices.ContainsFunc(problems, func(p *refusal) bool { return p.reason == reason }) {
			c.Reason = reason
			break
		}
	}
	return c
}
