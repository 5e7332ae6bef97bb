{{/* Labels of a part: call with (dict "root" $ "part" "scorer"). */}}
{{- define "fraudline.selector" -}}
app.kubernetes.io/name: fraudline
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "fraudline.labels" -}}
{{ include "fraudline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "fraudline.image" -}}
{{- $image := .root.Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag }}{{ if .cuda }}-cuda{{ end }}
{{- end -}}
{{- end }}

{{/* fraudline.yaml: the values' config, and what follows from the other values. */}}
{{- define "fraudline.config" -}}
{{- $values := .Values -}}
{{- $config := deepCopy $values.config -}}
{{- $_ := set $config "drain_timeout" (printf "%ds" (int $values.drainSeconds)) -}}
{{- /* A pod that is updated comes back under its name: its partitions wait for it, and nothing is rebalanced. */ -}}
{{- $_ := set $config "kafka" (merge ($config.kafka | default dict) (dict "leave_on_stop" false)) -}}
{{- $_ := set $config "scorer" (merge (dict "workers" $values.scorer.workers "http" "0.0.0.0:6567") ($config.scorer | default dict)) -}}
{{- $_ := set $config "materializer" (merge (dict "http" "0.0.0.0:6568") ($config.materializer | default dict)) -}}
{{- $_ := set $config "server" (merge (dict "http" "0.0.0.0:6566") ($config.server | default dict)) -}}
{{- $model := $config.model | default dict -}}
{{- if $values.models.name -}}
{{- $model = merge (dict "registry" "/srv/models" "name" $values.models.name) $model -}}
{{- if $values.models.challenger }}{{ $_ := set $model "challenger" $values.models.challenger }}{{ end -}}
{{- end -}}
{{- $_ := set $model "device" (ternary "cuda:0" "cpu" $values.scorer.gpu.enabled) -}}
{{- if $values.scorer.gpu.enabled }}{{ $_ := set $model "fallback" ($model.fallback | default "cpu") }}{{ end -}}
{{- $_ := set $config "model" $model -}}
{{ toYaml $config }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "fraudline.pod" -}}
serviceAccountName: {{ .root.Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "fraudline.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* What all containers have in common: call with root, part, port, and args. */}}
{{- define "fraudline.container" -}}
name: {{ .part }}
image: {{ include "fraudline.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: {{ toJson .args }}
ports:
  - { name: http, containerPort: {{ .port }} }
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- $secret := .root.Values.credentials.secret }}
{{- $config := .root.Values.config }}
{{- $store := first (keys ($config.store | default (dict "redis" dict))) }}
env:
  - name: POD_NAME
    valueFrom: { fieldRef: { fieldPath: metadata.name } }
  - { name: FRAUDLINE_CONFIG, value: /etc/fraudline/fraudline.yaml }
  # Kernels that were compiled for a GPU are kept in the home folder.
  - { name: HOME, value: /tmp }
  {{- if ($config.kafka | default dict).sasl }}
  - name: FRAUDLINE__KAFKA__SASL__PASSWORD
    valueFrom: { secretKeyRef: { name: {{ $secret }}, key: kafka-password } }
  {{- end }}
  - name: FRAUDLINE__STORE__{{ upper $store }}__PASSWORD
    valueFrom: { secretKeyRef: { name: {{ $secret }}, key: store-password, optional: true } }
# Alive is who answers. Ready is who has a warm model and partitions: a rolling update waits for that.
startupProbe: { httpGet: { path: /health, port: http }, periodSeconds: 2, failureThreshold: 150 }
livenessProbe: { httpGet: { path: /health, port: http }, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6 }
readinessProbe: { httpGet: { path: /ready, port: http }, periodSeconds: 2, timeoutSeconds: 2 }
{{- end }}

{{- define "fraudline.mounts" -}}
- { name: config, mountPath: /etc/fraudline/fraudline.yaml, subPath: fraudline.yaml, readOnly: true }
- { name: credentials, mountPath: /etc/fraudline/credentials, readOnly: true }
- { name: tmp, mountPath: /tmp }
{{- end }}

{{- define "fraudline.volumes" -}}
- name: config
  configMap: { name: {{ .Release.Name }} }
- name: credentials
  secret:
    secretName: {{ .Values.credentials.secret }}
    optional: true
    items: [{ key: store-ca.pem, path: store-ca.pem }]
- name: tmp
  emptyDir: { sizeLimit: 2Gi }
{{- end }}

{{/* Which of checkov's checks do not hold for the pods, and why. */}}
{{- define "fraudline.suppressed" -}}
checkov.io/skip1: CKV_K8S_11=A limit on CPU time would stop a scorer in the middle of a batch, and add to its latency for nothing
checkov.io/skip2: CKV_K8S_43=The values take a digest (image.digest); by default a version is named
checkov.io/skip3: CKV_K8S_15=A version's image does not change, and a node that has it starts a pod without the registry
checkov.io/skip4: CKV_K8S_35=Passwords are given by the environment, as every setting may be; the process has no shell that could print them
{{- end }}

{{/* A changed configuration is a new pod. */}}
{{- define "fraudline.annotations" -}}
checksum/config: {{ include "fraudline.config" . | sha256sum }}
{{- end }}
