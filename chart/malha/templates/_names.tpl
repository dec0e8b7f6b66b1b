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
