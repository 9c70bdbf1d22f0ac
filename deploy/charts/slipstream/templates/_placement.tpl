{{/*
Placement of pods. Takes (list . values). The keeper uses the values of the node, because its pods must be on the same
nodes as the driver's. With a component as third element, its replicas prefer different nodes.
*/}}
{{- define "slipstream.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.imagePullSecrets -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- with $values.nodeSelector -}}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- with $values.tolerations -}}
tolerations:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- if $values.affinity -}}
affinity:
  {{- toYaml $values.affinity | nindent 2 }}
{{- else if gt (len .) 2 -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "slipstream.selectorLabels" (list $root (index . 2)) | nindent 14 }}
{{- end }}
{{- end }}

{{/* At most one replica of a Deployment may be evicted at a time. Takes (list . values "component"). */}}
{{- define "slipstream.disruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $labels := list $root (index . 2) -}}
{{- if gt (int (index . 1).replicas) 1 -}}
---
# One at a time. The others take over.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "slipstream.fullname" $root }}-{{ index . 2 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "slipstream.labels" $labels | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "slipstream.selectorLabels" $labels | nindent 6 }}
{{- end }}
{{- end }}

{{/*
The user of pods that need no privilege. All containers run as this user, to share sockets and to read certificates.
slipstream.nonRoot has the rest.
*/}}
{{- define "slipstream.podUser" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
