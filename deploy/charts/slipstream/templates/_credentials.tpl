{{/* "yes" if the chart makes the certificates of controller and nodes. */}}
{{- define "slipstream.makesCertificates" -}}
{{- $tls := .Values.controller.tls -}}
{{- $given := or $tls.nodeSecret $tls.controllerSecret $tls.certManager.enabled -}}
{{- if and (include "slipstream.central" .) (not $given) }}yes{{ end -}}
{{- end }}

{{/* "yes" if the chart makes the token for readers of metrics. */}}
{{- define "slipstream.makesToken" -}}
{{- if and (include "slipstream.metricsToken" .) (not .Values.metrics.tokenSecret) }}yes{{ end -}}
{{- end }}

{{/* Names of the Secrets that the chart makes, as JSON. */}}
{{- define "slipstream.madeSecrets" -}}
{{- $names := list -}}
{{- if include "slipstream.makesCertificates" . }}
{{- range list "node" "controller" }}
{{- $names = append $names (include "slipstream.controllerSecret" (list $ .)) }}
{{- end }}
{{- end }}
{{- if include "slipstream.makesToken" . }}{{ $names = append $names (include "slipstream.metricsToken" .) }}{{ end -}}
{{- toJson $names -}}
{{- end }}

{{/* Spec of the Job that makes these Secrets. Takes (list . "account"). */}}
{{- define "slipstream.credentialsJob" -}}
{{- $root := index . 0 -}}
{{- $controller := $root.Values.controller -}}
backoffLimit: 4
# Also ends a pod that cannot start.
activeDeadlineSeconds: 600
ttlSecondsAfterFinished: 3600
template:
  metadata:
    labels:
      {{- include "slipstream.selectorLabels" (list $root "credentials") | nindent 6 }}
  spec:
    serviceAccountName: {{ index . 1 }}
    restartPolicy: Never
    {{- with include "slipstream.placement" (list $root $controller) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    securityContext:
      {{- include "slipstream.podUser" $root | nindent 6 }}
    containers:
      - name: credentials
        {{- $image := ternary "controller" "node" (ne (include "slipstream.central" $root) "") }}
        {{- include "slipstream.container" (list $root $image) | nindent 8 }}
        command: [/usr/bin/csi-driver]
        args:
          - --mode=credentials
          - --namespace={{ $root.Release.Namespace }}
          {{- if include "slipstream.makesCertificates" $root }}
          - --node-secret={{ include "slipstream.controllerSecret" (list $root "node") }}
          - --controller-secret={{ include "slipstream.controllerSecret" (list $root "controller") }}
          - --validity={{ $root.Values.credentials.validity }}
          {{- end }}
          {{- if include "slipstream.makesToken" $root }}
          - --metrics-secret={{ include "slipstream.metricsToken" $root }}
          {{- end }}
        resources:
          {{- toYaml $root.Values.credentials.resources | nindent 10 }}
        securityContext:
          {{- include "slipstream.nonRoot" $root | nindent 10 }}
{{- end }}

{{/* An account with a role on Secrets. Takes (list . "name" rules annotations). */}}
{{- define "slipstream.credentialsAccount" -}}
{{- $root := index . 0 -}}
{{- $labels := include "slipstream.labels" (list $root "credentials") -}}
{{- $metadata := printf "name: %s\nnamespace: %s\nlabels:\n%s" (index . 1) $root.Release.Namespace
  (indent 2 $labels) -}}
{{- with index . 3 }}{{ $metadata = printf "%s\nannotations:\n%s" $metadata (indent 2 .) }}{{ end -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- $metadata | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $metadata | nindent 2 }}
rules:
  {{- index . 2 | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ index . 1 }}
subjects:
  - kind: ServiceAccount
    name: {{ index . 1 }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}

{{- define "slipstream.credentialsRules" -}}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: {{ include "slipstream.madeSecrets" . }}
  verbs: [get, update]
{{- end }}
