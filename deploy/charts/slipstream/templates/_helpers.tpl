{{/* The driver's name; it stands in CSIDriver, in classes and in the kubelet's directories. */}}
{{- define "slipstream.driver" -}}csi.slipstream.dev{{- end }}

{{- define "slipstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "slipstream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "slipstream.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Labels by which objects are selected. Takes (list . "component"). */}}
{{- define "slipstream.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "slipstream.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels. Takes (list . "component"). */}}
{{- define "slipstream.labels" -}}
{{- $root := index . 0 -}}
{{ include "slipstream.selectorLabels" . }}
app.kubernetes.io/part-of: slipstream
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* An image's reference. Takes (list . "key in .Values.images"). */}}
{{- define "slipstream.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{/* What every container has. Takes (list . "key in .Values.images"). */}}
{{- define "slipstream.container" -}}
image: {{ include "slipstream.image" . | quote }}
imagePullPolicy: {{ (index . 0).Values.imagePullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* The name of the Secret with the site's certificate; empty without tls. */}}
{{- define "slipstream.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.certManager.enabled -}}
{{ include "slipstream.fullname" . }}-tls
{{- end -}}
{{- end }}

{{/* Not empty where the replicators listen for peers. */}}
{{- define "slipstream.link" -}}
{{- if .Values.replication.enabled }}{{ include "slipstream.tlsSecret" . }}{{ end -}}
{{- end }}

{{/* Not empty where peers reach the nodes through a gateway. It does not start where nobody may call. */}}
{{- define "slipstream.gateway" -}}
{{- if and (include "slipstream.link" .) .Values.replication.gateway.enabled .Values.site.peers }}yes{{ end -}}
{{- end }}

{{/* Not empty where the sidecars run in a Deployment and not in the nodes' pods. */}}
{{- define "slipstream.central" -}}
{{- if eq .Values.controller.mode "controller" }}yes{{ end -}}
{{- end }}

{{/* The Secret with the certificate of one side between controller and nodes. Takes (list . "node" or "controller"). */}}
{{- define "slipstream.controllerSecret" -}}
{{- $root := index . 0 -}}
{{- $tls := $root.Values.controller.tls -}}
{{- if $tls.certManager.enabled -}}
{{ include "slipstream.fullname" $root }}-{{ index . 1 }}-tls
{{- else if include "slipstream.makesCertificates" $root -}}
{{ include "slipstream.fullname" $root }}-{{ index . 1 }}-made-tls
{{- else -}}
{{ index $tls (printf "%sSecret" (index . 1)) }}
{{- end -}}
{{- end }}

{{/*
A container that needs no privilege. It is root with no capability because the driver's socket is root's alone. On a node
with SELinux it cannot reach a socket that a privileged container made; there its type has to be changed by a policy of the node.
*/}}
{{- define "slipstream.unprivileged" -}}
runAsUser: 0
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Refuses values that each are right and together are not. */}}
{{- define "slipstream.check" -}}
{{- if hasPrefix (printf "%s/" .Values.pool.path) (printf "%s/" .Values.journal.path) -}}
{{- fail "journal.path is in the pool: give a directory beside it, or none" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{- fail "tls.existingSecret and tls.certManager.enabled exclude each other: give one of them" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name is missing: name the issuer that signs for all sites" -}}
{{- end -}}
{{- if include "slipstream.central" . -}}
{{- $tls := .Values.controller.tls -}}
{{- $given := and $tls.nodeSecret $tls.controllerSecret -}}
{{- if and $tls.certManager.enabled (or $tls.nodeSecret $tls.controllerSecret) -}}
{{- fail "controller.tls has Secrets and certManager.enabled, which exclude each other: give one of them" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "controller.tls.certManager.issuerRef.name is missing: name an issuer that signs for this cluster's nodes only" -}}
{{- end -}}
{{- if and (or $tls.nodeSecret $tls.controllerSecret) (not $given) -}}
{{- fail "controller.tls.nodeSecret and controller.tls.controllerSecret belong together: give both (slipctl site secrets makes both), or neither, and the chart makes them" -}}
{{- end -}}
{{- if and $given (eq $tls.nodeSecret $tls.controllerSecret) -}}
{{- fail "controller.tls.nodeSecret and controller.tls.controllerSecret are the same: whoever has a node's key could be the controller" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.site.peers (not (include "slipstream.tlsSecret" .)) -}}
{{- fail "site.peers needs a certificate: set tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- if and .Values.site.peers (not .Values.replication.enabled) -}}
{{- fail "site.peers needs replication.enabled" -}}
{{- end -}}
{{- if and .Values.metrics.open .Values.metrics.tokenSecret -}}
{{- fail "metrics.open and metrics.tokenSecret exclude each other: give one of them" -}}
{{- end -}}
{{- if and .Values.metrics.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) (or .Values.metrics.annotations .Values.metrics.serviceMonitor.enabled) -}}
{{- fail "networkPolicy.metricsFrom is empty, so that no Prometheus reaches the metrics: say where yours calls from, as in values.yaml" -}}
{{- end -}}
{{- if hasKey .Values.site.peers .Values.site.name -}}
{{- fail (printf "site.peers has this site itself, %s" .Values.site.name) -}}
{{- end -}}
{{- end }}
