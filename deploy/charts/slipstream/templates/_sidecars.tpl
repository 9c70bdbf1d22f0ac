{{/*
The sidecars that watch claims and snapshots. Each takes (list . "mode"). "node": in a node's pod, for that node only.
"controller": one of all replicas serves the cluster.
*/}}

{{- define "slipstream.provisioner" -}}
{{- $root := index . 0 -}}
{{- $central := eq (index . 1) "controller" -}}
- name: csi-provisioner
  {{- include "slipstream.container" (list $root "provisioner") | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ $root.Values.logLevel }}
    - --timeout=2m
    # The records of volumes keep name and namespace of their claims, for the metrics.
    - --extra-create-metadata
    - --default-fstype=ext4
    # Claims that do not wait for a pod name no nodes.
    {{- if $central }}
    # Claims that wait name the pod's node first, then all others. A copy or a member of a group may need another node
    # than the pod's; Kubernetes then moves the pod.
    {{- else }}
    # Claims that wait name the pod's node only, because a node's driver makes volumes on its own node only.
    - --strict-topology
    {{- end }}
    - --immediate-topology=false
    {{- if $root.Values.capacity.enabled }}
    - --enable-capacity
    - --capacity-poll-interval={{ $root.Values.capacity.pollInterval }}
    # The owner of the capacity objects is the controller object, not the pod, which can be replaced at any time.
    - --capacity-ownerref-level={{ ternary 2 1 $central }}
    {{- if $central }}
    # There is an object for each node and class. All objects of a node change with each volume there. With the default
    # rate of one per second a new class can wait for minutes, and pods are placed by old values.
    - --kube-api-capacity-qps=20
    - --kube-api-capacity-burst=40
    # A silent node must not delay the others.
    - --capacity-threads=4
    {{- end }}
    {{- end }}
    {{- if $central }}
    - --leader-election
    {{- else }}
    - --node-deployment
    - --node-deployment-immediate-binding=false
    {{- end }}
    - --http-endpoint=:9813
    {{- range $root.Values.sidecars.provisioner.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    {{- if not $central }}
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
    {{- end }}
  ports:
    - name: m-provisioner
      containerPort: 9813
  {{- with include "slipstream.electionProbe" (list "m-provisioner" (index . 1)) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "slipstream.sidecarRest" (list $root $root.Values.sidecars.provisioner (index . 1)) | nindent 2 }}
{{- end }}

{{- define "slipstream.resizer" -}}
{{- $root := index . 0 -}}
- name: csi-resizer
  {{- include "slipstream.container" (list $root "resizer") | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ $root.Values.logLevel }}
    # The node grows the volume. One elected resizer marks the claims.
    - --leader-election
    # Volumes grow in use. Without this flag the resizer would watch all pods.
    - --handle-volume-inuse-error=false
    - --http-endpoint=:9814
    {{- range $root.Values.sidecars.resizer.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - name: m-resizer
      containerPort: 9814
  {{- with include "slipstream.electionProbe" (list "m-resizer" (index . 1)) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "slipstream.sidecarRest" (list $root $root.Values.sidecars.resizer (index . 1)) | nindent 2 }}
{{- end }}

{{- define "slipstream.snapshotter" -}}
{{- $root := index . 0 -}}
{{- $central := eq (index . 1) "controller" -}}
- name: csi-snapshotter
  {{- include "slipstream.container" (list $root "snapshotter") | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ $root.Values.logLevel }}
    - --timeout=2m
    - --extra-create-metadata
    {{- if $central }}
    - --leader-election
    {{- else }}
    - --node-deployment
    # The snapshotter of a node sees no group snapshots, and has no right to look for them.
    - --feature-gates=CSIVolumeGroupSnapshot=false
    {{- end }}
    - --http-endpoint=:9815
    {{- range $root.Values.sidecars.snapshotter.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  {{- if not $central }}
  env:
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
  {{- end }}
  ports:
    - name: m-snapshotter
      containerPort: 9815
  {{- with include "slipstream.electionProbe" (list "m-snapshotter" (index . 1)) }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "slipstream.sidecarRest" (list $root $root.Values.sidecars.snapshotter (index . 1)) | nindent 2 }}
{{- end }}

{{/* "yes" if the sidecar of csi-addons runs. */}}
{{- define "slipstream.csiAddons" -}}
{{- if .Values.sidecars.csiAddons.enabled }}yes{{ end -}}
{{- end }}

{{/* The sidecar of csi-addons. It ends if the driver's socket is not there yet, and is started again. */}}
{{- define "slipstream.csiAddonsSidecar" -}}
- name: csi-addons
  {{- include "slipstream.container" (list . "csiAddons") | nindent 2 }}
  args:
    - --csi-addons-address=unix:///csi/csi-addons.sock
    - --node-id=$(NODE_NAME)
    - --pod=$(POD_NAME)
    - --namespace=$(NAMESPACE)
    - --pod-uid=$(POD_UID)
    - --controller-port={{ .Values.sidecars.csiAddons.port }}
    - --leader-election-namespace=$(NAMESPACE)
    {{- range .Values.sidecars.csiAddons.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    {{- range $name, $path := dict "NAMESPACE" "metadata.namespace" "POD_NAME" "metadata.name" "POD_UID" "metadata.uid"
      "NODE_NAME" "spec.nodeName" }}
    - name: {{ $name }}
      valueFrom:
        fieldRef:
          fieldPath: {{ $path }}
    {{- end }}
  ports:
    - name: csi-addons
      containerPort: {{ .Values.sidecars.csiAddons.port }}
  {{- include "slipstream.sidecarRest" (list . .Values.sidecars.csiAddons "controller") | nindent 2 }}
{{- end }}

{{- define "slipstream.livenessProbe" -}}
{{- $root := index . 0 -}}
- name: livenessprobe
  {{- include "slipstream.container" (list $root "livenessProbe") | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --probe-timeout=3s
    - --http-endpoint=:9808
    {{- range $root.Values.sidecars.livenessProbe.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - name: healthz
      containerPort: 9808
  {{- include "slipstream.sidecarRest" (list $root $root.Values.sidecars.livenessProbe (index . 1)) | nindent 2 }}
{{- end }}

{{/* Restarts a leader that could not renew its lease and did not end. Takes (list "port" "mode"). */}}
{{- define "slipstream.electionProbe" -}}
{{- if eq (index . 1) "controller" -}}
livenessProbe:
  httpGet:
    path: /healthz/leader-election
    port: {{ index . 0 }}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 5
{{- end -}}
{{- end }}

{{/* Takes (list . values-of-the-sidecar "mode"). */}}
{{- define "slipstream.sidecarRest" -}}
{{- $sidecar := index . 1 -}}
resources:
  {{- toYaml $sidecar.resources | nindent 2 }}
securityContext:
  {{- if eq (index . 2) "controller" }}
  {{- include "slipstream.nonRoot" . | nindent 2 }}
  {{- else }}
  {{- include "slipstream.unprivileged" . | nindent 2 }}
  {{- end }}
volumeMounts:
  - name: csi
    mountPath: /csi
{{- end }}

{{/* All containers of the controller's pod run as the user of the pod, so they reach the driver's socket. */}}
{{- define "slipstream.nonRoot" -}}
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}
