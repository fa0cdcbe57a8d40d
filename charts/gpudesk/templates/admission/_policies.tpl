{{- /* A policy and the binding that puts it into effect: called with a dict of `root`, `name` and `spec`, and of
       `binding` where the binding is written apart, and `annotations`. Policies carry the defaults that the API server adds: whoever
       compares whole objects sees no difference. */ -}}
{{- define "gpudesk.policy" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ .name }}.gpudesk.dev
  {{- with .annotations }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
  labels:
    {{- include "gpudesk.labels" .root | nindent 4 }}
spec:
  failurePolicy: Fail
  {{- .spec | nindent 2 }}
{{- if not (hasKey . "binding") }}
---
{{ include "gpudesk.policyBinding" (dict "root" .root "name" .name "policy" .name "actions" (list "Deny")) }}
{{- end }}
{{- end }}

{{- /* A binding: called with a dict of `root`, `name`, `policy`, `actions`, `namespaces` (a label selector) where
       it is not for all, `param` where the policy has a parameter, and `annotations`. */ -}}
{{- define "gpudesk.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}.gpudesk.dev
  {{- with .annotations }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
  labels:
    {{- include "gpudesk.labels" .root | nindent 4 }}
spec:
  policyName: {{ .policy }}.gpudesk.dev
  {{- with .param }}
  paramRef:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .namespaces }}
  matchResources:
    matchPolicy: Equivalent
    namespaceSelector:
      {{- toYaml . | nindent 6 }}
    objectSelector: {}
  {{- end }}
  validationActions: [{{ join ", " .actions }}]
{{- end }}

{{- /* What a policy looks at: called with a dict of `group`, `resources` and `operations`. */ -}}
{{- define "gpudesk.match" -}}
matchConstraints:
  matchPolicy: Equivalent
  namespaceSelector: {}
  objectSelector: {}
  resourceRules:
    - apiGroups: [{{ .group | quote }}]
      apiVersions: ["*"]
      operations: [{{ join ", " .operations }}]
      resources: [{{ join ", " .resources }}]
      scope: "*"
{{- end }}

{{- /* An expression: the keys that differ between the maps `now` and `was`, but for those of `except`. What a
       writer may change is named; what is not named must stay as it is, also what is not invented yet. */ -}}
{{- define "gpudesk.changed" -}}
{{ $except := printf "['%s']" (join "', '" .except) -}}
{{ .now }}.filter(k, !(k in {{ $except }}) && !(k in {{ .was }} && {{ .now }}[k] == {{ .was }}[k]))
+ {{ .was }}.filter(k, !(k in {{ $except }}) && !(k in {{ .now }}))
{{- end }}

{{- /* The metadata before and after, and the keys of it that differ and are not the API server's own: called with
       a dict of `except`. An owner reference to what does not exist deletes an object, a finalizer keeps it. */ -}}
{{- define "gpudesk.metadataVariables" -}}
{{- $server := list "name" "namespace" "uid" "resourceVersion" "generation" "creationTimestamp" "managedFields" -}}
- name: metadata
  # What is deleted is not changed: each policy says of DELETE itself whether it is the writer's.
  expression: "object != null ? dyn(object.metadata) : oldObject != null ? dyn(oldObject.metadata) : {}"
- name: oldMetadata
  expression: "oldObject == null ? {} : dyn(oldObject.metadata)"
- name: changedMetadata
  expression: >-
    {{- include "gpudesk.changed" (dict "now" "variables.metadata" "was" "variables.oldMetadata" "except" (concat $server .except)) | nindent 4 }}
{{- end }}

{{- /* The same for labels. */ -}}
{{- define "gpudesk.labelVariables" -}}
- name: labels
  expression: variables.metadata.?labels.orValue({})
- name: oldLabels
  expression: variables.oldMetadata.?labels.orValue({})
- name: changedLabels
  expression: >-
    {{- include "gpudesk.changed" (dict "now" "variables.labels" "was" "variables.oldLabels" "except" .except) | nindent 4 }}
{{- end }}

{{- /* The same for a status and its conditions: called with a dict of `fields` and `conditions`, those of the writer. */ -}}
{{- define "gpudesk.statusVariables" -}}
{{- $own := printf "['%s']" (join "', '" .conditions) -}}
- name: status
  expression: "has(object.status) ? dyn(object.status) : {}"
- name: oldStatus
  expression: "has(oldObject.status) ? dyn(oldObject.status) : {}"
- name: changedStatus
  expression: >-
    {{- include "gpudesk.changed" (dict "now" "variables.status" "was" "variables.oldStatus" "except" (append .fields "conditions")) | nindent 4 }}
- name: conditions
  expression: variables.status.?conditions.orValue([])
- name: oldConditions
  expression: variables.oldStatus.?conditions.orValue([])
- name: changedConditions
  expression: >-
    (variables.conditions.filter(c, !(c.type in {{ $own }}) && !(c in variables.oldConditions))
    + variables.oldConditions.filter(c, !(c.type in {{ $own }}) && !(c in variables.conditions))).map(c, c.type)
{{- end }}

{{- /* What must not have changed: called with a dict of `who`, `kind`, and one of `metadata`, `labels` and `status`. */ -}}
{{- define "gpudesk.metadataKept" -}}
- expression: variables.changedMetadata.size() == 0
  reason: Forbidden
  messageExpression: >-
    '{{ .who }} may not write metadata.' + variables.changedMetadata.join(', metadata.') + ' of a {{ .kind }}'
{{- end }}
{{- define "gpudesk.labelsKept" -}}
- expression: variables.changedLabels.size() == 0
  reason: Forbidden
  messageExpression: >-
    '{{ .who }} may not write the label ' + variables.changedLabels.join(', ') + ' of a {{ .kind }}'
{{- end }}
{{- define "gpudesk.statusKept" -}}
- expression: variables.changedStatus.size() == 0
  reason: Forbidden
  messageExpression: >-
    '{{ .who }} may not write status.' + variables.changedStatus.join(', status.') + ' of a {{ .kind }}, which is written by others'
- expression: variables.changedConditions.size() == 0
  reason: Forbidden
  messageExpression: >-
    '{{ .who }} may not write the condition ' + variables.changedConditions.join(', ') + ' of a {{ .kind }}, which is written by others'
{{- end }}

{{- /* Who owns which fields, before and after; and what of it is of a status, which two programs write in turn by
       server-side apply: a field that somebody else owns too stays when its writer leaves it out. */ -}}
{{- define "gpudesk.managerVariables" -}}
- name: managers
  expression: "object != null ? dyn(object.metadata).?managedFields.orValue([]) : []"
- name: oldManagers
  expression: "oldObject == null ? [] : dyn(oldObject.metadata).?managedFields.orValue([])"
{{- end }}

{{- /* A program writes a status under its own name: called with `manager` and `who`. */ -}}
{{- define "gpudesk.managerPinned" -}}
- expression: request.?subResource.orValue('') != 'status' || request.?options.?fieldManager.orValue('') == '{{ .manager }}'
  reason: Forbidden
  messageExpression: >-
    '{{ .who }} writes a status as field manager {{ .manager }}, not as "' + string(request.?options.?fieldManager.orValue('')) + '"'
{{- end }}

{{- /* What a writer adds to metadata.managedFields: the API server takes any entry for fields that the object does not have.
       Called with `who` and `kind`, after managerVariables. What stands there, or is less of it, is left alone. */ -}}
{{- define "gpudesk.managersBounded" -}}
- expression: variables.managers.size() <= 16 || variables.managers.size() <= variables.oldManagers.size()
  reason: Forbidden
  message: {{ .who }} may write at most 16 entries of metadata.managedFields of {{ .kind }}
- expression: >-
    variables.managers.all(e, e in variables.oldManagers
      || e.?apiVersion.orValue('').size() <= 128 && e.?fieldsV1.orValue({}).size() <= 32
        && e.?fieldsV1.orValue({}).all(a, a.size() <= 64 && e.fieldsV1[a].size() <= 16
          && e.fieldsV1[a].all(b, b.size() <= 64 && e.fieldsV1[a][b].size() <= 4
            && e.fieldsV1[a][b].all(c, c.size() <= 64 && e.fieldsV1[a][b][c].size() == 0)))
      || variables.oldManagers.exists(o, o.?manager == e.?manager
        && e.?fieldsV1.orValue({}).all(a, a in o.?fieldsV1.orValue({})
          && e.fieldsV1[a].all(b, b in o.fieldsV1[a] && e.fieldsV1[a][b].all(c, c in o.fieldsV1[a][b]
            && e.fieldsV1[a][b][c] == o.fieldsV1[a][b][c])))))
  reason: Forbidden
  message: {{ .who }} may write no entry of metadata.managedFields of {{ .kind }} that names more fields than it has
{{- end }}

{{- /* The node of the daemon that asks, from its token; empty when the token is not bound to a node. */ -}}
{{- define "gpudesk.nodeVariable" -}}
- name: node
  expression: >-
    request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')
{{- end }}

{{- define "gpudesk.nodeRequired" -}}
- expression: variables.node != ''
  reason: Forbidden
  message: the token of this node daemon names no node; use a token that is bound to a pod or a Node
{{- end }}

{{- /* Conditions of a policy on who asks. The verbs are asked for the whole cluster: no right inside a namespace
       gives them, cluster-admin has both. */ -}}
{{- define "gpudesk.byOperator" -}}
matchConditions:
  - name: by-the-operator
    expression: {{ printf "request.userInfo.username == '%s'" (include "gpudesk.operatorUser" .) | quote }}
{{- end }}
{{- define "gpudesk.byNodeDaemon" -}}
matchConditions:
  - name: by-a-node-daemon
    expression: {{ printf "request.userInfo.username == '%s'" (include "gpudesk.nodeDaemonUser" .) | quote }}
{{- end }}
{{- define "gpudesk.mayOverride" -}}
authorizer.group('gpudesk.dev').resource('desktops').check('{{ . }}').allowed()
{{- end }}
