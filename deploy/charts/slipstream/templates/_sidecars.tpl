{{/*
The sidecars that watch claims and snapshots. Each takes (list . "mode"): "node" inside a node's pod, where it serves that
node alone, or "controller", where one of all replicas serves the cluster.
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
    # Names and namespaces of claims for the volumes' records, from which the metrics take them.
    - --extra-create-metadata
    - --default-fstype=ext4
    # Claims that do not wait for a pod say nothing of nodes. Those that do name the pod's node
    {{- if $central }} first, and all others: a copy or a member
    # of a group may have to be on one of those, and Kubernetes then moves the pod.
    {{- else }}, and no other: a node's driver can make volumes nowhere else.
    - --strict-topology
    {{- end }}
    - --immediate-topology=false
    {{- if $root.Values.capacity.enabled }}
    - --enable-capacity
    - --capacity-poll-interval={{ $root.Values.capacity.pollInterval }}
    # Who owns the capacity objects: the controller, not the pod, which may be replaced at any time.
    - --capacity-ownerref-level={{ ternary 2 1 $central }}
    {{- if $central }}
    # There is an object for each node and class, and all of a node's change with each volume there. With the provisioner's own bound of one
    # a second a new class can wait for minutes, and pods are placed by old numbers.
    - --kube-api-capacity-qps=20
    - --kube-api-capacity-burst=40
    # A node that does not answer must not hold the others up.
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
    # Growing is the node's work; one resizer of all marks the claims for it.
    - --leader-election
    # Volumes in use grow. Without this it would watch all pods.
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
    # It would see none, and has no right to look for them.
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

{{/* A leader that could not renew its lease and did not end either is restarted. Takes (list "port" "mode"). */}}
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

{{/* Containers of the controller's pod have one user, which the pod says, and reach the driver's socket by that. */}}
{{- define "slipstream.nonRoot" -}}
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}
