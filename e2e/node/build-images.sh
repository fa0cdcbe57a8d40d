#!/usr/bin/env bash
# Makes OCI archives of the operator, the node daemon and the sandbox of pods, with no engine and no registry, from
# programs that were built. What the images hold beside the programs is what their Containerfiles name:
#   operator     the C library that the program is linked to, and its user
#   node daemon  a Debian with the packages that node-daemon/Containerfile installs, kept in the cache folder
#
#   build-images.sh PROGRAMS FOLDER   from the programs in PROGRAMS, into FOLDER: NAME.tar each
#   build-images.sh --base            only the part that is kept; prints its file
#   build-images.sh --packages        print what node-daemon/Containerfile installs
#
#   MIRROR=URL          Debian mirror (default: the one that apt uses here)
#   XDG_CACHE_HOME=DIR  where the kept part goes (default ~/.cache)
set -euo pipefail
export LC_ALL=C SOURCE_DATE_EPOCH=0

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
containerfile=$here/../../node-daemon/Containerfile
registry=gpudesk.test tag=test

say() { printf 'images: %s (%s s)\n' "$*" "$SECONDS" >&2; }
die() { say "$*"; exit 1; }

# The last stage of the Containerfile: its Debian release, and what it installs.
stage=$(awk '/^FROM /{stage = ""} {stage = stage $0 "\n"} END {printf "%s", stage}' "$containerfile")
suite=$(sed -n 's|^FROM docker.io/library/debian:\([a-z]*\)-slim$|\1|p' <<<"$stage")
packages=$(sed -n 's/.*apt-get install --yes --no-install-recommends \(.*\) && \\$/\1/p' <<<"$stage")
[[ -n $suite && -n $packages ]] || die "no Debian release and no packages found in $containerfile"
if [[ ${1:-} == --packages ]]; then printf '%s\n' $packages; exit; fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk

build_base() {
  mkdir -p "$cache"
  exec 9>"$cache/node-base.lock"
  flock --nonblock 9 || { say 'another build is running, waiting'; flock 9; }
  if [[ -f $base ]]; then return; fi
  ((EUID == 0)) || die 'needs root'
  local mirror
  # shellcheck disable=SC2016 # apt-get expands these
  mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n 's/^Debian main //p' | head -n 1)}
  say "installing Debian $suite with $packages"
  rm -f "$cache"/node-base.part.*
  local part
  part=$(mktemp "$cache/node-base.part.XXXXXX")
  mmdebstrap --quiet --variant=essential --include="${packages// /,}" --mode=root --format=tar \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$part" "${mirror:-http://deb.debian.org/debian}" >&2 9>&- || { rm -f "$part"; die 'mmdebstrap failed'; }
  sha256sum "$part" | cut -d ' ' -f 1 >"$base.digest"
  mv "$part" "$base"
  say "done, $(du -m "$base" | cut -f 1) MiB"
}

# Named by everything that decides its content.
key=$({ printf '%s\n' "$suite" $packages; declare -f build_base; } | sha256sum)
base=$cache/node-base-${key:0:12}.tar

# layer NAME FOLDER: the tree as a layer of the image.
layer() {
  tar --create --file "$work/$1.layer" --directory "$2" --sort=name --owner=0 --group=0 --mtime=@0 .
  sha256sum "$work/$1.layer" | cut -d ' ' -f 1 >"$work/$1.layer.digest"
}

# blob IMAGE FILE [DIGEST]: puts a file among the blobs of an image, and prints its digest.
blob() {
  local digest=${3:-}
  [[ -n $digest ]] || digest=$(sha256sum "$2" | cut -d ' ' -f 1)
  ln "$2" "$work/$1/blobs/sha256/$digest" 2>/dev/null || cp "$2" "$work/$1/blobs/sha256/$digest"
  printf '%s' "$digest"
}

# archive NAME USER PROGRAM LAYER...: the image as NAME.tar.
archive() {
  local name=$1 user=$2 program=$3 file digest layers='' diffs='' config manifest
  shift 3
  mkdir -p "$work/$name/blobs/sha256"
  for file; do
    digest=$(blob "$name" "$file" "$(<"$file.digest")")
    layers+=${layers:+,}$(printf '{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}' \
      "$digest" "$(stat -c %s "$file")")
    diffs+=${diffs:+,}\"sha256:$digest\"
  done
  printf '{"architecture":"amd64","os":"linux","config":{"User":"%s","Entrypoint":["%s"],"Env":["PATH=%s"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$user" "$program" /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$diffs" >"$work/$name.config"
  config=$(blob "$name" "$work/$name.config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
    "$config" "$(stat -c %s "$work/$name.config")" "$layers" >"$work/$name.manifest"
  manifest=$(blob "$name" "$work/$name.manifest")
  printf '{"imageLayoutVersion":"1.0.0"}' >"$work/$name/oci-layout"
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s/%s:%s"}}]}' \
    "$manifest" "$(stat -c %s "$work/$name.manifest")" "$registry" "$name" "$tag" >"$work/$name/index.json"
  tar --create --file "$folder/$name.tar" --directory "$work/$name" oci-layout index.json blobs
}

if [[ ${1:-} == --base ]]; then build_base; printf '%s\n' "$base"; exit; fi
(($# == 2)) || die 'takes the folder of the programs and the folder for the images (see its first lines)'
programs=$1 folder=$2
[[ -f $base && -f $base.digest ]] || build_base
mkdir -p "$folder"
work=$(mktemp -d "$folder/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

mkdir -p "$work"/{pause,operator/etc,daemon/usr/bin}
gcc -Os -s -static -x c -o "$work/pause/pause" - <<'END'
#include <signal.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
int main(void)
{
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
END
layer pause "$work/pause"
archive pause 65535:65535 /pause "$work/pause.layer"

# Without what only a debugger reads.
install -D "$programs/gpudesk-operator" "$work/operator/usr/bin/gpudesk-operator"
install -D "$programs/gpudesk-node-daemon" "$work/daemon/usr/bin/gpudesk-node-daemon"
strip "$work"/{operator,daemon}/usr/bin/*
ldd "$work/operator/usr/bin/gpudesk-operator" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' |
  while read -r library; do install -D "$library" "$work/operator$library"; done
printf 'root:x:0:0::/:/none\nnonroot:x:65532:65532::/:/none\n' >"$work/operator/etc/passwd"
layer operator "$work/operator"
archive gpudesk-operator 65532:65532 /usr/bin/gpudesk-operator "$work/operator.layer"

layer daemon "$work/daemon"
archive gpudesk-node-daemon 0:0 /usr/bin/gpudesk-node-daemon "$base" "$work/daemon.layer"
