{{- define "malha.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion | replace "+" "-" -}}
{{- end -}}

{{- define "malha.labels" -}}
app.kubernetes.io/part-of: malha
app.kubernetes.io/version: {{ include "malha.tag" . | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
malha.dev/release: malha
{{- end -}}

{{- define "malha.adopt" -}}
{{- $names := list -}}
{{- if .Values.adopt.istio }}{{ $names = append $names "istio" }}{{ end -}}
{{- if .Values.adopt.linkerd }}{{ $names = append $names "linkerd" }}{{ end -}}
{{- join "," $names -}}
{{- end -}}

{{- define "malha.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "malha.identityEnv" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: SERVICE_ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
{{- end -}}

{{/* Where pods are never injected: the webhook is not even asked, so that a control plane that is away can't block them. */}}
{{- define "malha.outside" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: {{ concat (list "kube-system" .Release.Namespace) .Values.injection.excludeNamespaces | uniq | toJson }}
{{- end -}}

{{/* Where pods run. Takes a dict: values (of the part), app (its label). */}}
{{- define "malha.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  {{- if .values.affinity }}
  {{- toYaml .values.affinity | nindent 2 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {app: {{ .app }}}
  {{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ merge (dict) . (dict "labelSelector" (dict "matchLabels" (dict "app" $.app))) | toJson }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* How many pods: the budget that holds when nodes are emptied, and the autoscaler. Takes a dict: top, values, app. */}}
{{- define "malha.amount" -}}
{{- if .values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .app }}
  namespace: {{ .top.Release.Namespace }}
  labels:
    {{- include "malha.labels" .top | nindent 4 }}
spec:
  {{- if hasKey .values.podDisruptionBudget "minAvailable" }}
  minAvailable: {{ .values.podDisruptionBudget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  {{- end }}
  selector:
    matchLabels: {app: {{ .app }}}
{{- end }}
{{- if .values.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .app }}
  namespace: {{ .top.Release.Namespace }}
  labels:
    {{- include "malha.labels" .top | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .app }}}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ .values.autoscaling.targetCPUUtilizationPercentage }}}
{{- end }}
{{- end -}}
