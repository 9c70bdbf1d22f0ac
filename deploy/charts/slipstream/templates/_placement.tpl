{{/*
Where pods go. Takes (list . values), the values being those of the node also for the keeper, whose pods have to be wherever the
driver's are. With a component as the third, its replicas are put on different nodes where there are several.
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

{{/* One replica of a Deployment at a time may be evicted. Takes (list . values "component"). */}}
{{- define "slipstream.disruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $labels := list $root (index . 2) -}}
{{- if gt (int (index . 1).replicas) 1 -}}
---
# One at a time: the others take over what it did.
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
The user of pods that need no privilege: containers share sockets, and read certificates, as this one. What a container may do
besides is in slipstream.nonRoot.
*/}}
{{- define "slipstream.podUser" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}
