#!/usr/bin/env bash
# Builds the golden disk image of a small Debian 12 (see README.md) once, and prints
# its path as the last line of standard output. Progress goes to standard error.
#
# The folder is named by a hash of this script and of image/; the file appears in it
# whole or not at all. Two runs at once are safe: the second waits for the first.
# Needs root (for the ownership of the files in the image), no mounts, no loop
# devices.
#
#   MIRROR=URL          Debian mirror (default: the one that apt uses here)
#   XDG_CACHE_HOME=DIR  where the folder goes (default ~/.cache)
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

suite=bookworm
boot_mib=48
disk_mib=4096

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
parts=$here/image
say() { printf 'guest image: %s (%s s)\n' "$*" "$SECONDS" >&2; }
die() { say "$*"; exit 1; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk
key=$(cd "$here" && find build-image.sh image -type f | sort | xargs sha256sum | sha256sum)
folder=$cache/images-${key:0:12}
image=$folder/debian-12.qcow2

main() {
  if [[ ! -f $image ]]; then
    mkdir -p "$folder"
    exec {lock}>"$folder/.lock"
    flock -n "$lock" || { say 'another build is running, waiting'; flock "$lock"; }
    [[ -f $image ]] || build
  fi
  printf '%s\n' "$image"
}

build() {
  ((EUID == 0)) || die 'needs root'
  local tool
  for tool in mmdebstrap mkfs.vfat mcopy syslinux mkfs.ext4 sfdisk qemu-img; do
    command -v $tool >/dev/null || die "needs $tool (see README.md)"
  done
  work=$(mktemp -d "$folder/.build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  disk=$work/disk.raw
  cmdline=$(<"$parts/cmdline")

  say "installing Debian $suite from $(mirror)"
  install_packages
  say 'settling the system'
  settle_system
  say 'making the initramfs'
  make_initramfs
  say 'writing the disk'
  partition_disk
  write_boot_partition
  write_root_partition
  say 'compressing it to qcow2' # a third of the size; boots in the same time
  qemu-img convert -q -c -o compression_type=zstd -f raw -O qcow2 "$disk" "$work/image.qcow2"
  chmod 644 "$work/image.qcow2"
  mv "$work/image.qcow2" "$image"
  say "done, $(du -m "$image" | cut -f1) MiB"
}

# A file of image/ without its comments.
listed() { sed 's/#.*//' "$parts/$1"; }

# shellcheck disable=SC2016 # apt-get expands these
mirror() {
  local found
  found=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' | sed -n 's/^Debian main //p' | head -n 1)}
  printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

# shellcheck disable=SC2016 # mmdebstrap's shell expands these
install_packages() {
  local packages
  mapfile -t packages < <(listed packages | xargs -n 1)
  mmdebstrap --quiet --mode=root --variant=minbase \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/i18n/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt=force-confold \
    --setup-hook='mkdir -p "$1/etc/initramfs-tools"' \
    --setup-hook='echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"' \
    --include="usr-is-merged,$(IFS=,; echo "${packages[*]}")" \
    "$suite" "$root" "$(mirror)" >"$work/install.log" 2>&1 ||
    { tail -n 30 "$work/install.log" >&2; die 'mmdebstrap failed'; }
}

settle_system() {
  cp -rT --no-preserve=mode,ownership "$parts/files" "$root"
  ln -sf ../run/resolv.conf "$root/etc/resolv.conf"

  local system=$root/etc/systemd/system name
  for name in $(listed masked-units); do
    ln -sf /dev/null "$system/$name"
  done
  mkdir -p "$root/etc/systemd/system-generators"
  for name in $(listed masked-generators); do
    ln -sf /dev/null "$root/etc/systemd/system-generators/$name"
  done
  # Stands in for cloud-init's generator, whose answer is always yes here.
  mkdir -p "$system/multi-user.target.wants"
  ln -sf /lib/systemd/system/cloud-init.target "$system/multi-user.target.wants/"
  printf 'd /run/cloud-init 0755\nf /run/cloud-init/enabled 0644\n' \
    >"$root/etc/tmpfiles.d/cloud-init-enabled.conf"
  chroot "$root" systemctl --quiet enable systemd-networkd.service resolv-conf.path
  chroot "$root" systemctl --quiet reenable acpid.service

  chroot "$root" python3 -m compileall -q /usr/lib/python3 /usr/lib/python3.11 || true

  # Nothing that two desktops must not share.
  : >"$root/etc/machine-id"
  rm -f "$root"/var/lib/dbus/machine-id "$root"/etc/ssh/ssh_host_* \
    "$root"/var/lib/systemd/random-seed "$root"/etc/.pwd.lock
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root"/var/log/* \
    "$root"/var/lib/cloud
}

make_initramfs() {
  local tree=$root/tmp/initramfs tool name order modules version
  version=$(ls "$root/lib/modules")
  mkdir -p "$tree"/{bin,dev,proc,sys,root,modules}
  cp "$root/bin/busybox" "$tree/bin/"
  for tool in sh mount insmod sleep switch_root; do
    ln -s busybox "$tree/bin/$tool"
  done
  {
    printf '#!/bin/sh\n'
    while read -r order modules; do
      printf "%s='%s'\n" "${order^^}" "$modules"
      for name in $modules; do
        find "$root/lib/modules/$version" -name "$name.ko" -exec cp {} "$tree/modules/" \;
      done
    done < <(listed modules | sed '/^$/d')
    cat "$parts/init"
  } >"$tree/init"
  chmod 755 "$tree/init"
  chroot "$root" sh -c 'cd /tmp/initramfs && find . | cpio --quiet -o -H newc' >"$work/initrd"
  cp "$root/boot/vmlinuz-$version" "$work/vmlinuz"
  rm -rf "$tree" "${root:?}"/boot/*
}

# Partition 1 at 1 MiB for the boot files, partition 2 after it for the system up to
# the last MiB, where the second partition table is.
partition_disk() {
  root_start_mib=$((boot_mib + 1))
  root_mib=$((disk_mib - root_start_mib - 1))
  truncate -s "${disk_mib}M" "$disk"
  sfdisk --quiet "$disk" <<TABLE
label: gpt
start=1MiB, size=${boot_mib}MiB, type=uefi, name=gpudesk-boot, attrs=LegacyBIOSBootable
start=${root_start_mib}MiB, size=${root_mib}MiB, type=linux, name=gpudesk-root
TABLE
}

# BIOS: the boot code of the disk starts syslinux. UEFI: systemd-boot.
write_boot_partition() {
  local boot=$work/boot.fat
  truncate -s "${boot_mib}M" "$boot"
  mkfs.vfat -F 16 -n GPUDESKBOOT -h 2048 "$boot" >/dev/null
  sed "s|@CMDLINE@|$cmdline|" "$parts/syslinux.cfg" >"$work/syslinux.cfg"
  sed "s|@CMDLINE@|$cmdline|" "$parts/systemd-boot.conf" >"$work/debian.conf"
  mmd -i "$boot" ::EFI ::EFI/BOOT ::loader ::loader/entries
  mcopy -i "$boot" "$work/vmlinuz" "$work/initrd" "$work/syslinux.cfg" ::
  mcopy -i "$boot" "$root/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
  mcopy -i "$boot" "$work/debian.conf" ::loader/entries/
  syslinux --install "$boot"

  dd if=/usr/lib/syslinux/mbr/gptmbr.bin of="$disk" conv=notrunc status=none
  dd if="$boot" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
}

write_root_partition() {
  mkfs.ext4 -q -F -L gpudesk-root -d "$root" \
    -E "offset=$((root_start_mib * 1024 * 1024)),lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
    "$disk" "$((root_mib * 1024))k"
}

main
