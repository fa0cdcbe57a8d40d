#!/usr/bin/env bash
# Builds the guest that is a GPU node (see README.md) once, and prints its folder as the
# last line of standard output; in it are vmlinuz, initrd and root.qcow2. Progress goes to
# standard error.
#
# The folder is named by a hash of this script, of image/ and modules/, and of the kernel
# that apt offers; it appears whole or not at all. Two runs at once are safe: the second
# waits for the first. Needs root (for the ownership of the files in the image), no mounts,
# no loop devices. Nothing of the kernel is installed here.
#
#   MIRROR=URL          Debian mirror (default: the one that apt uses here)
#   XDG_CACHE_HOME=DIR  where the folder goes (default ~/.cache)
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

disk_mib=3072

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'GPU node: %s (%s s)\n' "$*" "$SECONDS" >&2; }
die() { say "$*"; exit 1; }

# shellcheck disable=SC1091
suite=$(. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:-}")
case $suite in
  bookworm) newer=bookworm-backports ;;
  trixie) newer='' ;;
  *) die "the guest must be the Debian that the programs are built on: 12 or 13, not '$suite'" ;;
esac

main() {
  find_kernel
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk key lock
  key=$(cd "$here" && find build.sh image modules -type f | sort | xargs sha256sum |
    { cat; printf '%s\n' "$kernel" "$kernel_package"; } | sha256sum)
  folder=$cache/gpu-node-${key:0:12}
  if [[ ! -d $folder ]]; then
    mkdir -p "$cache"
    exec {lock}>"$cache/gpu-node.lock"
    flock -n "$lock" || { say 'another build is running, waiting'; flock "$lock"; }
    [[ -d $folder ]] || build
  fi
  printf '%s\n' "$folder"
}

# The kernel that the package linux-image-amd64 stands for: its release, as `uname -r`
# prints it, without -amd64, and the version of its packages.
find_kernel() {
  kernel_package=$(apt-cache madison linux-image-amd64 |
    awk -F ' *[|] *' -v suite=" ${newer:-$suite}" 'index($3, suite "/main ") { print $2; exit }')
  kernel=$(apt-cache show "linux-image-amd64=${kernel_package:-none}" 2>/dev/null |
    sed -n 's/^Depends: linux-image-\([^ ]*\)-amd64 .*/\1/p')
  [[ -n $kernel ]] ||
    die "apt knows no linux-image-amd64 in ${newer:-$suite}: run e2e/install.sh and apt-get update"
}

build() {
  ((EUID == 0)) || die 'needs root'
  local tool packaging modules
  for tool in mmdebstrap mkfs.ext4 qemu-img cpio depmod modprobe make gcc strip xz dpkg-deb; do
    command -v $tool >/dev/null || die "needs $tool: run e2e/install.sh"
  done
  work=$(mktemp -d "$folder.part.XXXXXX")
  # shellcheck disable=SC2046 # one word for each job
  trap 'kill $(jobs -p) 2>/dev/null || :; rm -rf "$work"' EXIT
  root=$work/root
  mkdir "$work/made"

  say "installing Debian $suite from $(mirror), building modules for Linux $kernel"
  install_packages &
  packaging=$!
  { fetch_kernel && build_modules && choose_modules; } &
  modules=$!
  wait "$modules" || die 'the kernel and its modules were not made'
  wait "$packaging" || die 'the root tree was not made'
  settle_system
  say 'making the initramfs and the disk'
  make_initramfs
  cp "$work/kernel/boot/vmlinuz-$kernel-amd64" "$work/made/vmlinuz"
  make_disk
  chmod 755 "$work/made"
  mv -T "$work/made" "$folder"
  say "done, $(du -sm "$folder" | cut -f1) MiB"
}

# A file of image/ without its comments.
listed() { sed 's/#.*//' "$here/image/$1"; }

# shellcheck disable=SC2016 # apt-get expands these
mirror() {
  local found
  found=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' | sed -n 's/^Debian main //p' | head -n 1)}
  printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

install_packages() {
  local name from packages=() late=() sources
  sources=("deb $(mirror) $suite main")
  [[ -z $newer ]] || sources+=("deb $(mirror) $newer main")
  while read -r name from; do
    if [[ $from == backports && -n $newer ]]; then
      late+=("$name/$newer")
    elif [[ -n $name ]]; then
      packages+=("$name")
    fi
  done < <(listed packages)
  # shellcheck disable=SC2016 # mmdebstrap's shell expands $1
  mmdebstrap --quiet --mode=root --variant=minbase --skip=cleanup/apt/lists \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/qemu/edk2-*' \
    --dpkgopt='path-exclude=/usr/share/qemu-efi-aarch64/*' \
    --include="usr-is-merged,$(IFS=,; echo "${packages[*]}")" \
    ${late[@]:+--customize-hook="chroot \"\$1\" apt-get -qq -y --no-install-recommends install ${late[*]}"} \
    "$suite" "$root" "${sources[@]}" >"$work/install.log" 2>&1 ||
    { tail -n 30 "$work/install.log" >&2; return 1; }
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root"/var/log/*
  say 'packages are installed'
}

# The kernel, its headers and the sources of its mdev samples, unpacked into $work.
fetch_kernel() {
  local packages=("linux-image-$kernel-amd64" "linux-headers-$kernel-amd64"
    "linux-headers-$kernel-common" "linux-kbuild-$kernel")
  series=$(cut -d. -f1,2 <<<"$kernel")
  mkdir "$work/packages" "$work/kernel" "$work/source"
  (cd "$work/packages" && apt-get -qq -o APT::Sandbox::User=root download \
    "${packages[@]/%/=$kernel_package}" "linux-source-$series=$kernel_package") || return
  local package
  for package in "${packages[@]}"; do
    dpkg-deb -x "$work/packages/$package"_*.deb "$work/kernel" || return
  done
  dpkg-deb --fsys-tarfile "$work/packages/linux-source-$series"_*.deb |
    tar -xO "./usr/src/linux-source-$series.tar.xz" | xz -dc |
    tar -C "$work/source" -x --strip-components=1 --wildcards '*/samples/vfio-mdev/*' || return
  rm -r "$work/packages"
}

build_modules() {
  local headers=$work/kernel/usr/src/linux-headers-$kernel modules=$work/modules
  # It names the folder in which the package would be installed.
  sed -i "s|^include .*|include $headers-common/Makefile|" "$headers-amd64/Makefile"
  cp -r "$here/modules" "$modules"
  cp "$work"/source/samples/vfio-mdev/{mdpy,mtty,mbochs}.c "$work"/source/samples/vfio-mdev/*.h "$modules"
  make -s -j2 -C "$headers-amd64" M="$modules" CONFIG_DEBUG_INFO_BTF_MODULES= modules \
    >"$work/modules.log" 2>&1 || { tail -n 30 "$work/modules.log" >&2; return 1; }
  strip -g "$modules"/*.ko
}

# Puts the listed modules and those they need into $work/tree, uncompressed: unpacking is
# slow under emulation.
choose_modules() {
  local release=$kernel-amd64 from=$work/kernel to=$work/tree/lib/modules/$kernel-amd64 name file
  install -D -m 644 -t "$from/lib/modules/$release/extra" "$work"/modules/*.ko
  depmod -b "$from" "$release"
  {
    for name in $(listed kernel-modules) mtty mdpy mbochs sim-ids nvidia; do
      modprobe -d "$from" -S "$release" --show-depends "$name" || return
    done
  } | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u >"$work/chosen"
  [[ -s $work/chosen ]] || return
  while read -r file; do
    name=$to/${file#*"/lib/modules/$release/"}
    mkdir -p "${name%/*}"
    case $file in
      *.xz) xz -dc "$file" >"${name%.xz}" ;;
      *) cp "$file" "$name" ;;
    esac
  done <"$work/chosen"
  cp "$from/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$to"
  depmod -b "$work/tree" "$release"
  say 'modules are built'
}

settle_system() {
  cp -r "$work/tree/lib/modules" "$root/usr/lib/"
  install -m 755 "$here/image/gpu-node-init" "$root/usr/sbin/gpu-node-init"
  install -m 755 "$here/image/runner" "$root/usr/sbin/runner"
  install -m 644 "$here/image/qemu.conf" "$root/etc/libvirt/qemu.conf"
  mkdir -p "$root/host" "$root/var/cache/libvirt" "$root/var/log/libvirt"
  echo gpu-node >"$root/etc/hostname"
  # libvirt tries out every emulator it finds, which takes 5 s for each under emulation.
  rm -f "$root/usr/bin/qemu-system-i386"
}

make_initramfs() {
  local tree=$work/initramfs release=$kernel-amd64 file
  mkdir -p "$tree"/{bin,dev,root,modules}
  cp "$root/bin/busybox" "$tree/bin/"
  install -m 755 "$here/image/initramfs-init" "$tree/init"
  # In the order of loading.
  for file in $(listed kernel-modules | sed '/^$/d;q'); do
    modprobe -d "$work/tree" -S "$release" --show-depends "$file"
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >"$work/order"
  while read -r file; do
    cp "$file" "$tree/modules/"
    printf '%s\n' "${file##*/}" >>"$tree/modules/order"
  done <"$work/order"
  (cd "$tree" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/made/initrd"
}

make_disk() {
  local disk=$work/root.raw
  truncate -s "${disk_mib}M" "$disk"
  mkfs.ext4 -q -F -O '^metadata_csum,^has_journal' -d "$root" \
    -E lazy_itable_init=0,nodiscard "$disk"
  # A quarter of the size; boots in the same time.
  qemu-img convert -q -c -o compression_type=zstd -f raw -O qcow2 "$disk" "$work/made/root.qcow2"
}

main
