{{/* Name of the driver, as in CSIDriver, in classes and in the kubelet's directories. */}}
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

{{/* Fields of every container. Takes (list . "key in .Values.images"). */}}
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

{{/* Not empty if the replicators listen for peers. */}}
{{- define "slipstream.link" -}}
{{- if .Values.replication.enabled }}{{ include "slipstream.tlsSecret" . }}{{ end -}}
{{- end }}

{{/* "yes" if peers reach the nodes through a gateway. Without peers there is no gateway. */}}
{{- define "slipstream.gateway" -}}
{{- if and (include "slipstream.link" .) .Values.replication.gateway.enabled .Values.site.peers }}yes{{ end -}}
{{- end }}

{{/* Where the replicators of the nodes reach each other, as a JSON array. */}}
{{- define "slipstream.siteNodes" -}}
{{- $service := printf "%s-link-nodes.%s.svc" (include "slipstream.fullname" .) .Release.Namespace -}}
{{- .Values.replication.siteNodes | default (list (printf "%s:%d" $service (int .Values.replication.port))) | toJson -}}
{{- end }}

{{/* "yes" if the sidecars run in a Deployment and not in the pods of the nodes. */}}
{{- define "slipstream.central" -}}
{{- if eq .Values.controller.mode "controller" }}yes{{ end -}}
{{- end }}

{{/* "yes" if the operator runs. It calls the nodes as the controller does, and needs replicators. */}}
{{- define "slipstream.operator" -}}
{{- if and (include "slipstream.central" .) .Values.operator.enabled .Values.replication.enabled }}yes{{ end -}}
{{- end }}

{{/* The Secret with the certificate of the nodes or of the controller. Takes (list . "node" or "controller"). */}}
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
A container that needs no privilege. It is root without capabilities, because only root may open the driver's socket.
On a node with SELinux it cannot reach a socket that a privileged container made. A policy of the node must change its
type.
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

{{/* Refuses values that are valid alone but not together. */}}
{{- define "slipstream.check" -}}
{{- if hasPrefix (printf "%s/" .Values.pool.path) (printf "%s/" .Values.journal.path) -}}
{{- fail "journal.path is inside pool.path: set a directory outside of the pool, or leave it empty" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{- fail "tls.existingSecret and tls.certManager.enabled exclude each other: set only one of them" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name is missing: set the issuer that signs for all sites" -}}
{{- end -}}
{{- if include "slipstream.central" . -}}
{{- $tls := .Values.controller.tls -}}
{{- $given := and $tls.nodeSecret $tls.controllerSecret -}}
{{- if and $tls.certManager.enabled (or $tls.nodeSecret $tls.controllerSecret) -}}
{{- fail "controller.tls: Secrets and certManager.enabled exclude each other: set only one of them" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "controller.tls.certManager.issuerRef.name is missing: set an issuer for this cluster only" -}}
{{- end -}}
{{- if and (or $tls.nodeSecret $tls.controllerSecret) (not $given) -}}
{{- fail "controller.tls: nodeSecret and controllerSecret belong together: set both, or neither" -}}
{{- end -}}
{{- if and $given (eq $tls.nodeSecret $tls.controllerSecret) -}}
{{- fail "controller.tls: nodeSecret and controllerSecret are the same: a node could act as the controller" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.sidecars.csiAddons.enabled (not (include "slipstream.central" .)) -}}
{{- fail "sidecars.csiAddons needs controller.mode controller: its sidecar talks to one pod for the cluster" -}}
{{- end -}}
{{- if and .Values.site.peers (not (include "slipstream.tlsSecret" .)) -}}
{{- fail "site.peers needs a certificate: set tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- if and .Values.site.peers (not .Values.replication.enabled) -}}
{{- fail "site.peers needs replication.enabled" -}}
{{- end -}}
{{- if and .Values.replication.siteNodes (not (include "slipstream.gateway" .)) -}}
{{- fail "replication.siteNodes needs replication.gateway.enabled and site.peers" -}}
{{- end -}}
{{- if and .Values.metrics.open .Values.metrics.tokenSecret -}}
{{- fail "metrics.open and metrics.tokenSecret exclude each other: set only one of them" -}}
{{- end -}}
{{- $scraped := or .Values.metrics.annotations .Values.metrics.serviceMonitor.enabled -}}
{{- $blocked := and .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- if and .Values.metrics.enabled $blocked $scraped -}}
{{- fail "networkPolicy.metricsFrom is empty, so no Prometheus reaches the metrics: set it, as in values.yaml" -}}
{{- end -}}
{{- if hasKey .Values.site.peers .Values.site.name -}}
{{- fail (printf "site.peers has this site itself, %s: remove it" .Values.site.name) -}}
{{- end -}}
{{- end }}
