{{/* Where the pods of the nodes go: the keeper's have to be wherever the driver's are. */}}
{{- define "slipstream.placement" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- with .Values.node.nodeSelector -}}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- with .Values.node.affinity -}}
affinity:
  {{- toYaml . | nindent 2 }}
{{ end -}}
tolerations:
  {{- toYaml .Values.node.tolerations | nindent 2 }}
{{- end }}
