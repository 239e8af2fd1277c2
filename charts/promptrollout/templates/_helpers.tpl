{{- define "promptrollout.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "promptrollout.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "promptrollout.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "promptrollout.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "promptrollout.operator" -}}
{{- include "promptrollout.fullname" . }}-operator
{{- end }}

{{- /* What the operator binds for each gateway. By release: two of them share a cluster, each with its namespaces. */ -}}
{{- define "promptrollout.gatewayRole" -}}
{{- include "promptrollout.fullname" . }}-gateway
{{- end }}

{{- define "promptrollout.selectorLabels" -}}
app.kubernetes.io/name: {{ include "promptrollout.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "promptrollout.labels" -}}
app.kubernetes.io/name: {{ include "promptrollout.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "promptrollout.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "promptrollout.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed with serviceAccount.create=false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "promptrollout.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{- /* Where a metrics source's Secret is mounted, by the source's name. */ -}}
{{- define "promptrollout.sourceDir" -}}
/var/run/promptrollout/sources/{{ . }}
{{- end }}

{{- /* A file of a metrics source: a key of its Secret, or a path. Takes the source, the field's name and its value. */ -}}
{{- define "promptrollout.sourceFile" -}}
{{- if hasPrefix "/" .value -}}
{{ .value }}
{{- else if .source.secretName -}}
{{ include "promptrollout.sourceDir" .source.name }}/{{ .value }}
{{- else -}}
{{- fail (printf "metricsSources: %s of %s is a key of a Secret: set secretName, or write a path" .field .source.name) -}}
{{- end -}}
{{- end }}

{{- /* One metrics source as the operator reads it. */ -}}
{{- define "promptrollout.source" -}}
{{- $source := omit (deepCopy .) "secretName" -}}
{{- range $field := list "bearerTokenFile" "caFile" "clientCertificateFile" "clientKeyFile" -}}
{{- with get $source $field -}}
{{- $_ := set $source $field (include "promptrollout.sourceFile" (dict "source" $ "field" $field "value" .)) -}}
{{- end -}}
{{- end -}}
{{- with $source.basicAuth -}}
{{- $file := include "promptrollout.sourceFile" (dict "source" $ "field" "basicAuth.passwordFile" "value" .passwordFile) -}}
{{- $_ := set . "passwordFile" $file -}}
{{- end -}}
{{ toYaml $source }}
{{- end }}

{{- /* What the operator reads at its start. */ -}}
{{- define "promptrollout.config" -}}
metricsSources:
{{- range .Values.metricsSources }}
  -
    {{- include "promptrollout.source" . | nindent 4 }}
{{- else }} []
{{- end }}
watchNamespaces: {{ toJson .Values.watchNamespaces }}
logLevel: {{ .Values.logLevel }}
settleSeconds: {{ .Values.settleSeconds }}
gatewayClusterRole: {{ include "promptrollout.gatewayRole" . }}
allowedProviderNetworks: {{ toJson ((.Values.gateway).allowedProviderNetworks | default list) }}
refusedProviderNetworks: {{ toJson ((.Values.gateway).refusedProviderNetworks | default list) }}
gatewayImage: {{ default (include "promptrollout.image" .) .Values.gatewayImage | quote }}
{{- end }}

{{- /* The operator's permissions in the namespaces that it watches. */ -}}
{{- define "promptrollout.rules" -}}
# What people declare: read only. The operator writes their status and nothing else.
- apiGroups: [promptrollout.dev]
  resources: [promptrollouts, promptgateways, promptslos, modelproviders]
  verbs: [get, list, watch]
# What it owns: copies of versions, and the configuration and keys of response ids that gateways read.
- apiGroups: [promptrollout.dev]
  resources: [promptversions, promptdeliveries, promptsigningkeys]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [promptrollout.dev]
  resources:
    - promptrollouts/status
    - promptgateways/status
    - promptslos/status
    - modelproviders/status
    - promptversions/status
    - promptdeliveries/status
  verbs: [patch]
# ownerReferences with blockOwnerDeletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [promptrollout.dev]
  resources: [promptgateways/finalizers]
  verbs: [update]
# A gateway's parts. They go with their PromptGateway: the garbage collector deletes them, not the operator.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
# Deleted where it names another role than below: the API server lets nobody change that.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, create, patch, delete]
# The one role that it may hand out, and it cannot change what is in it.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [{{ include "promptrollout.gatewayRole" . }}]
  verbs: [bind]
# Who has acknowledged; a pod that never does is evicted.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# The emergency override. No Secrets anywhere.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
