#!/usr/bin/env bash
# Tries a node, the chart's pods and a desktop on them (e2e/examples/real_node.rs) on a machine that has cgroup v2 alone
# and systemd as its PID 1: a Debian guest under plain emulation, so that neither KVM nor such a machine is needed.
# The control plane, helm and kubectl run on this machine, and only the node in the guest. What the guest says is printed
# after a bar; the status is that of the trial.
#
#   try-in-vm.sh [--shell | --logs | --image]
#     --shell      no trial: a shell of the guest on this terminal
#     --logs       also what every program in it writes, and who uses its processors
#     --image      only build the guest (once) and print its folder
#   MIRROR=URL          Debian mirror (default: the one that apt uses here)
#   XDG_CACHE_HOME=DIR  where the guest goes (default ~/.cache)
#   PATIENCE=N          how many times as long as elsewhere things may take in it (default 20)
#   LIMIT=SECONDS       after which the trial is ended (default 5400)
#
# Needs root, for namespaces and the ownership of files in the images. Kernel and initramfs are those of ../gpu-node.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk
say() { printf 'try in a VM: %s (%s s)\n' "$*" "$SECONDS" >&2; }
die() { say "$*"; exit 1; }

shell=false image=false logs=false
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
  --shell) shell=true; shift ;;
  --image) image=true; shift ;;
  --logs) logs=true; shift ;;
esac
((EUID == 0)) || die 'needs root'

# What a bare Debian 12 has once e2e/install.sh was there, as far as nodes need it.
packages=(systemd-sysv udev dbus kmod iproute2 procps iptables nftables socat containerd runc
  containernetworking-plugins gcc libc6-dev binutils)
late=(libvirt-daemon-system libvirt-clients libvirt0 qemu-system-x86 qemu-utils)

kernel=$("$here/../gpu-node/build.sh" | tail -n 1)
release=$(file -b "$kernel/vmlinuz" | sed -n 's/.*version \([^ ]*\) .*/\1/p')
[[ -n $release ]] || die "$kernel/vmlinuz names no release"
build_guest() {
  local suite=bookworm mirror part root
  # shellcheck disable=SC2016 # apt-get expands these
  mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n 's/^Debian main //p' | head -n 1)}
  mirror=${mirror:-http://deb.debian.org/debian}
  part=$(mktemp -d "$folder.part.XXXXXX")
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$part'" EXIT
  root=$part/root
  say "installing Debian $suite, Linux $release"
  # shellcheck disable=SC2016 # mmdebstrap's shell expands $1
  mmdebstrap --quiet --mode=root --variant=minbase --skip=cleanup/apt/lists \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="usr-is-merged,$(IFS=,; echo "${packages[*]}")" \
    --customize-hook="chroot \"\$1\" apt-get -qq -y --no-install-recommends -t $suite-backports install ${late[*]}" \
    "$suite" "$root" "deb $mirror $suite main" "deb $mirror $suite-backports main" >"$part/log" 2>&1 ||
    { tail -n 30 "$part/log" >&2; die 'the guest was not installed'; }
  (cd "$part" && apt-get -qq -o APT::Sandbox::User=root download "linux-image-$release" &&
    dpkg-deb -x linux-image-*.deb kernel) || die "no package linux-image-$release"
  rm -rf "$part"/kernel/lib/modules/*/kernel/{sound,drivers/gpu,drivers/media,drivers/net/wireless}
  cp -r "$part/kernel/lib/modules" "$root/usr/lib/"
  depmod -b "$root" "$release"
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
  # The initramfs calls this.
  ln -s /lib/systemd/systemd "$root/usr/sbin/gpu-node-init"
  echo bare-debian >"$root/etc/hostname"
  # The machine's own, which the node does not use: they would only take time.
  for unit in libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service \
    virtlogd.socket virtlockd.socket containerd.service apt-daily.timer apt-daily-upgrade.timer; do
    ln -sfn /dev/null "$root/etc/systemd/system/$unit"
  done
  printf '%s /try ext4 noatime 0 0\n' LABEL=try >"$root/etc/fstab"
  mkdir "$root/try"
  cat >"$root/etc/systemd/system/try.service" <<'UNIT'
[Unit]
Description=The trial of the disk "try"
RequiresMountsFor=/try
[Service]
ExecStart=/try/start
StandardInput=tty-force
TTYPath=/dev/ttyS0
StandardOutput=tty
StandardError=tty
[Install]
WantedBy=multi-user.target
UNIT
  ln -s ../try.service "$root/etc/systemd/system/multi-user.target.wants/try.service"
  ln -sfn /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
  truncate -s 8G "$part/root.raw"
  mkfs.ext4 -q -F -O '^metadata_csum' -d "$root" -E lazy_itable_init=0,nodiscard "$part/root.raw"
  rm -rf "$root" "$part/kernel" "$part"/*.deb
  chmod 755 "$part"
  mv -T "$part" "$folder"
  trap - EXIT
  say "done, $(du -sm "$folder" | cut -f1) MiB"
}

# Named by everything that decides its content.
key=$({ printf '%s\n' "$release" "${packages[@]}" "${late[@]}"; declare -f build_guest; } | sha256sum)
folder=$cache/node-vm-${key:0:12}
if [[ ! -d $folder ]]; then
  mkdir -p "$cache"
  exec 9>"$cache/node-vm.lock"
  flock 9
  [[ -d $folder ]] || build_guest 9>&-
  exec 9>&-
fi
if $image; then printf '%s\n' "$folder"; exit; fi

# The programs of the node, at the places that real_node --join looks at.
work=$(mktemp -d /var/tmp/try-in-vm.XXXXXX)
trap 'rm -rf "$work"' EXIT
tree=$work/try
mkdir -p "$tree"/{bin,guests}
control_plane=$("$here/../control-plane/build.sh" | tail -n 1)
tiny=$("$here/../guest/build-tiny.sh" | tail -n 1)
(cd "$checkout" && "${CARGO:-cargo}" build --quiet --workspace --all-features --bins --examples)
programs=$checkout/target/debug
"$here/build-images.sh" "$programs" "$tree/images"
strip -o "$tree/bin/real_node" "$programs/examples/real_node"
cp -a "$control_plane"/{kubelet,kube-proxy} "$tree/bin/"
cp "$tiny" "$tree/guests/"
cat >"$tree/start" <<END_OF_START
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
export GPUDESK_PATIENCE=${PATIENCE:-20} RUST_LOG=\${RUST_LOG:-info}
udevadm settle
if $shell; then bash -i; else
  echo "up since \$(cut -d ' ' -f 1 /proc/uptime) s; PID 1 is \$(cat /proc/1/comm)"; uname -a
  grep cgroup /proc/self/mounts; cat /proc/self/cgroup /sys/fs/cgroup/cgroup.subtree_control
  if $logs; then
    while sleep 20; do top -b -n 1 | sed -n '1,3p;7,16p'; done &
    (while ! compgen -G '/var/tmp/gpudesk/*/logs/*.log' >/dev/null; do sleep 2; done
      sleep 30; exec tail -n +1 -F /var/tmp/gpudesk/*/logs/*.log) &
  fi
  mkdir /try/keys
  tar -xf /dev/disk/by-id/virtio-keys -C /try/keys
  /try/bin/real_node --join /try
  status=\$?
  cat /sys/fs/cgroup/cgroup.subtree_control
  ((status == 0)) || for log in $checkout/target/e2e-logs/*/*; do echo "== \$log"; tail -n 20 "\$log"; done
  echo "try in a VM: status \$status"
fi
systemctl poweroff --force
END_OF_START
chmod 755 "$tree/start"
mkfs.ext4 -q -F -L try -d "$tree" "$work/try.raw" 2G
rm -rf "$tree"

console=$work/console chardev=file,id=console,path=$work/console
if $shell; then chardev=stdio,id=console,signal=off; fi
# It is no slower with a thread for each CPU, and here a lost boot costs only another try.
qemu=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
  -accel tcg,thread=multi,tb-size=1024 -machine q35 -cpu Nehalem -smp 2 -m 4096
  -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd"
  -append 'console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable systemd.unified_cgroup_hierarchy=1 quiet'
  -chardev "$chardev" -serial chardev:console
  -drive "if=none,id=root,format=raw,snapshot=on,file=$folder/root.raw" -device virtio-blk-pci,drive=root
  -drive "if=none,id=try,format=raw,cache=unsafe,file=$work/try.raw" -device virtio-blk-pci,drive=try
  -device virtio-rng-pci)
if $shell; then "${qemu[@]}"; exit; fi
say 'starting the trial'
: >"$console"
tail --pid=$$ -n +1 -f "$console" 2>/dev/null | sed -u 's/^/  | /' &
status=0
GPUDESK_PATIENCE=${PATIENCE:-20} timeout --foreground "${LIMIT:-5400}" \
  "$programs/examples/real_node" --console "$console" -- "${qemu[@]}" || status=$?
say "the trial ended with status $status"
exit "$status"
