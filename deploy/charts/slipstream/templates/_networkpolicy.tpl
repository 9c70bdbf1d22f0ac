{{/* Ingress rules: who may call which port. */}}

{{- define "slipstream.peersMay" -}}
- ports:
    - port: link
  {{- with .Values.networkPolicy.peerCIDRs }}
  from:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* The pods of the component may call the port. Takes (list . "component" "port"). */}}
{{- define "slipstream.podsMay" -}}
- ports:
    - port: {{ index . 2 }}
  from:
    - podSelector:
        matchLabels:
          {{- include "slipstream.selectorLabels" (list (index . 0) (index . 1)) | nindent 10 }}
{{- end }}

{{/* Readers of metrics may call these ports. Takes (list . ports). */}}
{{- define "slipstream.readersMay" -}}
- ports:
    {{- range index . 1 }}
    - port: {{ .name }}
    {{- end }}
  from:
    {{- toYaml (index . 0).Values.networkPolicy.metricsFrom | nindent 4 }}
{{- end }}

{{/* The rules for the pods of a component. Takes (list . component), the component as in slipstream.metrics. */}}
{{- define "slipstream.ingress" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $gateway := include "slipstream.gateway" $root -}}
{{- if eq $component.name "gateway" }}
{{ include "slipstream.peersMay" $root }}
{{- end }}
{{- if eq $component.name "node" }}
{{- if $gateway }}
{{ include "slipstream.podsMay" (list $root "gateway" "link") }}
{{ include "slipstream.podsMay" (list $root "node" "link") }}
{{- end }}
{{- if and (include "slipstream.link" $root) (or (not $gateway) $root.Values.replication.hostPort) }}
{{ include "slipstream.peersMay" $root }}
{{- end }}
{{- if include "slipstream.central" $root }}
{{ include "slipstream.podsMay" (list $root "controller" "csi") }}
{{- if include "slipstream.operator" $root }}
{{ include "slipstream.podsMay" (list $root "operator" "csi") }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $component.name "controller") (include "slipstream.csiAddons" $root) }}
- ports:
    - port: csi-addons
  from:
    {{- toYaml $root.Values.sidecars.csiAddons.from | nindent 4 }}
{{- end }}
{{- if and $root.Values.metrics.enabled $root.Values.networkPolicy.metricsFrom }}
{{ include "slipstream.readersMay" (list $root $component.ports) }}
{{- end }}
{{- end }}
