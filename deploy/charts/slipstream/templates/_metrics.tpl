{{/* Metrics ports of the sidecars, as JSON: name and number. */}}
{{- define "slipstream.sidecarMetrics" -}}
{{- $ports := list (dict "name" "m-provisioner" "port" 9813) (dict "name" "m-resizer" "port" 9814) -}}
{{- if .Values.sidecars.snapshotter.enabled }}
{{- $ports = append $ports (dict "name" "m-snapshotter" "port" 9815) }}
{{- end -}}
{{- toJson $ports -}}
{{- end }}

{{/* Metrics ports of the node pods. */}}
{{- define "slipstream.nodeMetrics" -}}
{{- $ports := list (dict "name" "m-driver" "port" 9811) -}}
{{- if .Values.replication.enabled }}{{ $ports = append $ports (dict "name" "m-replicator" "port" 9812) }}{{ end -}}
{{- if not (include "slipstream.central" .) }}
{{- $ports = concat $ports (include "slipstream.sidecarMetrics" . | fromJsonArray) }}
{{- end -}}
{{- toJson $ports -}}
{{- end }}

{{/* Metrics ports of the controller pods. */}}
{{- define "slipstream.controllerMetrics" -}}
{{- $ports := list (dict "name" "m-driver" "port" 9811) -}}
{{- concat $ports (include "slipstream.sidecarMetrics" . | fromJsonArray) | toJson -}}
{{- end }}

{{/* Metrics port of the gateway pods. */}}
{{- define "slipstream.gatewayMetrics" -}}
{{- list (dict "name" "m-gateway" "port" 9816) | toJson -}}
{{- end }}

{{/* Metrics port of the operator pods. */}}
{{- define "slipstream.operatorMetrics" -}}
{{- list (dict "name" "m-operator" "port" 9818) | toJson -}}
{{- end }}

{{/* Components with metrics, as JSON: each with its ports. */}}
{{- define "slipstream.metrics" -}}
{{- $components := list (dict "name" "node" "ports" (include "slipstream.nodeMetrics" . | fromJsonArray)) -}}
{{- if include "slipstream.central" . }}
{{- $components = append $components (dict "name" "controller"
  "ports" (include "slipstream.controllerMetrics" . | fromJsonArray)) }}
{{- end -}}
{{- if include "slipstream.gateway" . }}
{{- $components = append $components (dict "name" "gateway"
  "ports" (include "slipstream.gatewayMetrics" . | fromJsonArray)) }}
{{- end -}}
{{- if include "slipstream.operator" . }}
{{- $components = append $components (dict "name" "operator"
  "ports" (include "slipstream.operatorMetrics" . | fromJsonArray)) }}
{{- end -}}
{{- toJson $components -}}
{{- end }}

{{/* Secret with the token for readers of metrics. Empty: metrics are for loopback only, or open. */}}
{{- define "slipstream.metricsToken" -}}
{{- if and .Values.metrics.enabled (not .Values.metrics.open) -}}
{{ default (printf "%s-metrics-token" (include "slipstream.fullname" .)) .Values.metrics.tokenSecret }}
{{- end -}}
{{- end }}

{{/*
Where a program of this project serves metrics, and to whom. The ports answer all addresses, because probes call them.
Callers from outside of the pod get metrics only with the token. Takes (list . port).
*/}}
{{- define "slipstream.metricsArgs" -}}
{{- $root := index . 0 -}}
- --metrics-addr=:{{ index . 1 }}
{{- if include "slipstream.metricsToken" $root }}
- --metrics-token-file=/etc/slipstream/metrics/token
{{- else if and $root.Values.metrics.enabled $root.Values.metrics.open }}
- --metrics-open
{{- end }}
{{- end }}

{{- define "slipstream.metricsMount" -}}
{{- if include "slipstream.metricsToken" . -}}
- name: metrics-token
  mountPath: /etc/slipstream/metrics
  readOnly: true
{{- end }}
{{- end }}

{{- define "slipstream.metricsVolume" -}}
{{- with include "slipstream.metricsToken" . -}}
- name: metrics-token
  secret:
    secretName: {{ . }}
    # Volumes must not wait for it.
    optional: true
    defaultMode: 0440
    items:
      - key: token
        path: token
{{- end }}
{{- end }}
