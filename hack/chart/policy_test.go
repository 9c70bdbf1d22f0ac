package main

import (
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

// request is a call to the API server.
type request struct {
	account  string // of the release's namespace
	node     string // of the pod that the token is bound to; empty: to none
	resource schema.GroupVersionResource
	sub      string // subresource
	old, new runtime.Object
	// namespace is the one of the object, where a policy looks at it.
	namespace *corev1.Namespace
}

func (r request) operation() admission.Operation {
	switch {
	case r.old == nil:
		return admission.Create
	case r.new == nil:
		return admission.Delete
	}
	return admission.Update
}

// refusal is what a rendering's policies say against a request, evaluated by the API server's own code; empty: nothing.
func refusal(t *testing.T, objects []object, r request) string {
	t.Helper()
	info := &user.DefaultInfo{Name: "system:serviceaccount:" + testRelease.Namespace + ":" + r.account}
	if r.node != "" {
		info.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {r.node}}
	}
	some := r.new
	if some == nil {
		some = r.old
	}
	accessor, err := meta.Accessor(some)
	if err != nil {
		t.Fatal(err)
	}
	kind := some.GetObjectKind().GroupVersionKind()
	attributes := admission.NewAttributesRecord(r.new, r.old, kind, accessor.GetNamespace(), accessor.GetName(),
		r.resource, r.sub, r.operation(), nil, false, info)
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind}
	if r.new != nil {
		versioned.VersionedObject = admission.NewLazyObject(r.new)
	}
	if r.old != nil {
		versioned.VersionedOldObject = admission.NewLazyObject(r.old)
	}
	for _, o := range objects {
		policy, ok := o.typed.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok || !about(policy, r) || !enforced(objects, policy.Name) {
			continue
		}
		result := compile(t, policy).Validate(t.Context(), r.resource, versioned, nil, r.namespace,
			celconfig.RuntimeCELCostBudget, nil)
		for _, decision := range result.Decisions {
			switch {
			case decision.Evaluation == validating.EvalError:
				t.Errorf("%s: %s", policy.Name, decision.Message)
			case decision.Action == validating.ActionDeny:
				return decision.Message
			}
		}
	}
	return ""
}

// about reports whether a policy's constraints take a request, as far as these policies use them.
func about(policy *admissionv1.ValidatingAdmissionPolicy, r request) bool {
	resource := r.resource.Resource
	if r.sub != "" {
		resource += "/" + r.sub
	}
	return slices.ContainsFunc(policy.Spec.MatchConstraints.ResourceRules,
		func(rule admissionv1.NamedRuleWithOperations) bool {
			return slices.Contains(rule.APIGroups, r.resource.Group) && slices.Contains(rule.APIVersions, "*") &&
				slices.Contains(rule.Resources, resource) &&
				slices.Contains(rule.Operations, admissionv1.OperationType(r.operation()))
		})
}

// enforced reports whether a policy is bound so that it refuses.
func enforced(objects []object, policy string) bool {
	return slices.ContainsFunc(objects, func(o object) bool {
		b, ok := o.typed.(*admissionv1.ValidatingAdmissionPolicyBinding)
		return ok && b.Spec.PolicyName == policy && slices.Contains(b.Spec.ValidationActions, admissionv1.Deny) &&
			b.Spec.MatchResources == nil
	})
}

// compile does what the API server does with a policy that it is given.
func compile(t *testing.T, policy *admissionv1.ValidatingAdmissionPolicy) validating.Validator {
	t.Helper()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	declarations := cel.OptionalVariableDeclarations{HasAuthorizer: true}
	var variables []cel.NamedExpressionAccessor
	for _, v := range policy.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: v.Name, Expression: v.Expression})
	}
	compiler.CompileAndStoreVariables(variables, declarations, environment.NewExpressions)
	var conditions, validations []cel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	for _, v := range policy.Spec.Validations {
		if v.Message == "" || strings.Contains(v.Message, "\n") {
			t.Errorf("%s: message %q", policy.Name, v.Message)
		}
		validations = append(validations, &validating.ValidationCondition{Expression: v.Expression, Message: v.Message,
			Reason: v.Reason})
	}
	matcher := matchconditions.NewMatcher(compiler.CompileCondition(conditions, declarations, environment.NewExpressions),
		policy.Spec.FailurePolicy, "policy", "validate", policy.Name)
	return validating.NewValidator(compiler.CompileCondition(validations, declarations, environment.NewExpressions),
		matcher,
		compiler.CompileCondition(nil, declarations, environment.NewExpressions),
		compiler.CompileCondition(nil, declarations, environment.NewExpressions),
		policy.Spec.FailurePolicy, nil)
}
