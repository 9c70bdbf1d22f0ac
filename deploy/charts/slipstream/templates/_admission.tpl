{{/* The account that the sidecars run as. */}}
{{- define "slipstream.sidecarAccount" -}}
{{ include "slipstream.fullname" . }}-{{ ternary "controller" "node" (ne (include "slipstream.central" .) "") }}
{{- end }}

{{/*
A policy for the sidecars' account, and its binding. Takes (list . "name" rules variables validations), the last three
as in the spec of a ValidatingAdmissionPolicy, and behind them the component of another account. A request that the
policy cannot evaluate is refused.
*/}}
{{- define "slipstream.policy" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "slipstream.fullname" $root) (index . 1) -}}
{{- $component := ternary "controller" "node" (ne (include "slipstream.central" $root) "") -}}
{{- $account := include "slipstream.sidecarAccount" $root -}}
{{- if gt (len .) 5 -}}
{{- $component = index . 5 -}}
{{- $account = printf "%s-%s" (include "slipstream.fullname" $root) $component -}}
{{- end -}}
{{- $labels := include "slipstream.labels" (list $root $component) -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ $name }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      {{- toYaml (index . 2) | nindent 6 }}
  matchConditions:
    - name: account
      expression: request.userInfo.username == 'system:serviceaccount:{{ $root.Release.Namespace }}:{{ $account }}'
  {{- with index . 3 }}
  variables:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  validations:
    {{- toYaml (index . 4) | nindent 4 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  policyName: {{ $name }}
  validationActions: [Deny]
{{- end }}

{{/* A variable: all annotations except the named ones are unchanged. Takes (list "names, as a list of CEL"). */}}
{{- define "slipstream.annotationsVariable" -}}
{{- $same := "%[1]s.metadata.?annotations[?k] == %[2]s.metadata.?annotations[?k]" -}}
{{- $kept := printf "%%[1]s.metadata.?annotations.orValue({}).all(k, k in %%[3]s || %s)" $same -}}
{{- dict "name" "annotationsKept" "expression" (printf "%s && %s"
  (printf $kept "object" "oldObject" (index . 0)) (printf $kept "oldObject" "object" (index . 0))) | toJson -}}
{{- end }}

{{/* An expression: these fields of both objects are equal. Takes (list "path" "field"...). */}}
{{- define "slipstream.unchanged" -}}
{{- $path := first . -}}
{{- $same := list -}}
{{- range rest . }}{{ $same = append $same (printf "object.%s.?%s == oldObject.%s.?%s" $path . $path .) }}{{ end -}}
{{- join " && " $same -}}
{{- end }}

{{/* A variable: all finalizers except one are unchanged. Takes (list "name"). */}}
{{- define "slipstream.finalizersVariable" -}}
{{- $others := "%s.metadata.?finalizers.orValue([]).filter(f, f != '%s')" -}}
{{- dict "name" "finalizersKept" "expression" (printf "%s == %s"
  (printf $others "object" (index . 0)) (printf $others "oldObject" (index . 0))) | toJson -}}
{{- end }}
