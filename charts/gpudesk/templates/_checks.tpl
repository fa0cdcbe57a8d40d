{{- /* Settings that each are possible and together are not, which the schema cannot tell. */ -}}
{{- define "gpudesk.checks" -}}
{{- with .Values.nodeDaemon }}
{{- if and .enabled .relay.enabled (eq (int .relay.port) (int $.Values.metrics.port)) }}
{{- fail (printf "metrics.port and nodeDaemon.relay.port are both %d: give one of them another port" (int .relay.port)) }}
{{- end }}
{{- if and .relay.hostPort (not .relay.enabled) }}
{{- fail "nodeDaemon.relay.hostPort is true and nodeDaemon.relay.enabled is false: enable the relay, or leave out hostPort" }}
{{- end }}
{{- $filter := (.guestNetwork | default dict).filter | default "enforce" }}
{{- if and (eq $filter "enforce") (not (and .privileged .hostPID)) }}
{{- fail (printf "nodeDaemon.privileged is %v and nodeDaemon.hostPID is %v, and nodeDaemon.guestNetwork.filter is enforce, which takes both: set filter to external and keep guests off your networks by your own means, or set both to true" .privileged .hostPID) }}
{{- end }}
{{- if and (eq .acceleration "auto") (not .privileged) }}
{{- fail "nodeDaemon.privileged is false and nodeDaemon.acceleration is auto, which takes it to find out whether KVM works: set acceleration to kvm or emulation" }}
{{- end }}
{{- end }}
{{- end }}
