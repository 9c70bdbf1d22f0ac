{{/* Rules of ingress: who may call what. */}}

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

{{/* Takes (list . "component" "port"): the component's pods may call the port. */}}
{{- define "slipstream.podsMay" -}}
- ports:
    - port: {{ index . 2 }}
  from:
    - podSelector:
        matchLabels:
          {{- include "slipstream.selectorLabels" (list (index . 0) (index . 1)) | nindent 10 }}
{{- end }}

{{/* Takes (list . ports): who reads metrics may call the ports that have them. */}}
{{- define "slipstream.readersMay" -}}
- ports:
    {{- range index . 1 }}
    - port: {{ .name }}
    {{- end }}
  from:
    - namespaceSelector:
        {{- toYaml (index . 0).Values.networkPolicy.metricsNamespaceSelector | nindent 8 }}
{{- end }}
