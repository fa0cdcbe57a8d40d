{{- /* What the schema cannot tell, and what it would only tell by a regular expression. */ -}}
{{- define "gpudesk.checks" -}}
{{- if not (regexMatch `^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$` .Values.image.registry) }}
{{- fail (printf "image.registry is %q; write HOST, HOST:PORT or HOST/PATH, without https:// and without a slash at the end" .Values.image.registry) }}
{{- end }}
{{- if not (regexMatch `^([A-Za-z0-9_:-]+=)?(error|warn|info|debug|trace|off)(,([A-Za-z0-9_:-]+=)?(error|warn|info|debug|trace|off))*$` .Values.log.level) }}
{{- fail (printf "log.level is %q; write error, warn, info, debug, trace or off, or a filter like info,gpudesk_operator=debug" .Values.log.level) }}
{{- end }}
{{- range $index, $range := (.Values.nodeDaemon.guestNetwork | default dict).deny }}
{{- if not (regexMatch `^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}(/([0-9]|[12][0-9]|3[0-2]))?|(([0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|([0-9A-Fa-f]{1,4}:){1,7}:|([0-9A-Fa-f]{1,4}:){1,6}:[0-9A-Fa-f]{1,4}|([0-9A-Fa-f]{1,4}:){1,5}(:[0-9A-Fa-f]{1,4}){1,2}|([0-9A-Fa-f]{1,4}:){1,4}(:[0-9A-Fa-f]{1,4}){1,3}|([0-9A-Fa-f]{1,4}:){1,3}(:[0-9A-Fa-f]{1,4}){1,4}|([0-9A-Fa-f]{1,4}:){1,2}(:[0-9A-Fa-f]{1,4}){1,5}|[0-9A-Fa-f]{1,4}:(:[0-9A-Fa-f]{1,4}){1,6}|:((:[0-9A-Fa-f]{1,4}){1,7}|:))(/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?)$` $range) }}
{{- fail (printf "nodeDaemon.guestNetwork.deny[%d] is %q; write an address, or one with the length of its prefix, like 10.96.0.0/12 or fd00:10:96::/112" $index $range) }}
{{- end }}
{{- end }}
{{- range $program := list "operator" "nodeDaemon" }}
{{- $values := index $.Values $program }}
{{- range $what := list "requests" "limits" }}
{{- range $name, $quantity := index ($values.resources | default dict) $what }}
{{- if not (regexMatch `^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$` (toString $quantity)) }}
{{- fail (printf "%s.resources.%s.%s is %v; write a quantity of Kubernetes, like 100m, 2 or 512Mi (a gigabyte is 1G, not 1GB)" $program $what $name $quantity) }}
{{- end }}
{{- end }}
{{- end }}
{{- include "gpudesk.checkLabels" (list (printf "%s.podLabels" $program) $values.podLabels) }}
{{- include "gpudesk.checkLabels" (list (printf "%s.nodeSelector" $program) $values.nodeSelector) }}
{{- include "gpudesk.checkNames" (list (printf "%s.podAnnotations" $program) $values.podAnnotations) }}
{{- end }}
{{- include "gpudesk.checkLabels" (list "commonLabels" .Values.commonLabels) }}
{{- include "gpudesk.checkNames" (list "metrics.service.annotations" (.Values.metrics.service | default dict).annotations) }}
{{- include "gpudesk.checkLabels" (list "admission.inlineUserData.denyNamespaces.matchLabels" (.Values.admission.inlineUserData.denyNamespaces | default dict).matchLabels) }}
{{- range (.Values.admission.inlineUserData.denyNamespaces | default dict).matchExpressions }}
{{- $key := .key }}
{{- range .values | default (list "") }}
{{- include "gpudesk.checkLabels" (list "admission.inlineUserData.denyNamespaces.matchExpressions" (dict $key .)) }}
{{- end }}
{{- end }}
{{- with .Values.nodeDaemon }}
{{- if and .enabled .relay.enabled (eq (int .relay.port) (int $.Values.metrics.port)) }}
{{- fail (printf "metrics.port and nodeDaemon.relay.port are both %d: give one of them another port" (int .relay.port)) }}
{{- end }}
{{- if and .relay.hostPort (not .relay.enabled) }}
{{- fail "nodeDaemon.relay.hostPort is true and nodeDaemon.relay.enabled is false: enable the relay, or leave out hostPort" }}
{{- end }}
{{- $filter := (.guestNetwork | default dict).filter | default "enforce" }}
{{- if and .networkFunctions (not .privileged) }}
{{- fail "nodeDaemon.privileged is false and nodeDaemon.networkFunctions is true, which takes it: the cards are told in the host's network; set privileged to true, or networkFunctions to false" }}
{{- end }}
{{- if and (eq $filter "enforce") (not .privileged) }}
{{- fail "nodeDaemon.privileged is false and nodeDaemon.guestNetwork.filter is enforce, which takes it: set filter to external and keep guests off your networks by your own means, or set privileged to true" }}
{{- end }}
{{- if and (eq .acceleration "auto") (not .privileged) }}
{{- fail "nodeDaemon.privileged is false and nodeDaemon.acceleration is auto, which takes it to find out whether KVM works: set acceleration to kvm or emulation" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Names of labels or annotations: called with a list of the setting and its value. */ -}}
{{- define "gpudesk.checkNames" -}}
{{- $setting := first . }}
{{- range $name, $_ := last . }}
{{- if not (and (regexMatch `^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$` $name) (lt (len $name) 318)) }}
{{- fail (printf "%s has the name %q; write letters, digits, hyphens, underscores and dots, with a letter or digit at both ends, at most 63 characters, and before it, where wanted, a DNS name and a slash" $setting $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The same, with the values of labels. */ -}}
{{- define "gpudesk.checkLabels" -}}
{{- include "gpudesk.checkNames" . }}
{{- $setting := first . }}
{{- range $name, $value := last . }}
{{- if not (regexMatch `^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$` $value) }}
{{- fail (printf "%s.%s is %q; write letters, digits, hyphens, underscores and dots, with a letter or digit at both ends, at most 63 characters" $setting $name $value) }}
{{- end }}
{{- end }}
{{- end }}
