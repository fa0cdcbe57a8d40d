{{- /* A policy and the binding that puts it into effect: called with a dict of `root`, `name` and `spec`. */ -}}
{{- define "gpudesk.policy" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ .name }}.gpudesk.dev
  labels:
    {{- include "gpudesk.labels" .root | nindent 4 }}
spec:
  failurePolicy: Fail
  {{- .spec | nindent 2 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}.gpudesk.dev
  labels:
    {{- include "gpudesk.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}.gpudesk.dev
  validationActions: [Deny]
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
