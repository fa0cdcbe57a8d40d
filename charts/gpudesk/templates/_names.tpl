{{- /* Labels of every object. Called with the root context. */ -}}
{{- define "gpudesk.labels" -}}
app.kubernetes.io/part-of: gpudesk
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What selects the pods of one program: called with a dict of `root` and `component`. Never changes. */ -}}
{{- define "gpudesk.selector" -}}
app.kubernetes.io/name: gpudesk-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- /* An image by its name in the registry: called with a dict of `root` and `name`. */ -}}
{{- define "gpudesk.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "gpudesk.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* User names of the two programs, as the API server sees them. */ -}}
{{- define "gpudesk.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpudesk-operator
{{- end }}
{{- define "gpudesk.nodeDaemonUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpudesk-node-daemon
{{- end }}

{{- /* What the API server adds to a pod and to a container. */ -}}
{{- define "gpudesk.podDefaults" -}}
dnsPolicy: ClusterFirst
restartPolicy: Always
schedulerName: default-scheduler
terminationGracePeriodSeconds: 30
{{- end }}
{{- define "gpudesk.containerDefaults" -}}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: File
{{- end }}
