#!/usr/bin/env bash
# Boots the golden image with a seed disk, as a desktop would, under plain emulation:
# the guest agent must answer and run commands, cloud-init must do what the seed
# says, the screen must show the login prompt, and the power button must end it.
# Prints the times from the start of QEMU, in milliseconds.
#
#   check-image.sh [IMAGE]  default: what build-image.sh makes
#   SCREENSHOT=FILE.png     where the picture of the screen goes (default: nowhere)
#   FIRMWARE=FILE           boot with this UEFI firmware instead of SeaBIOS
#   SEED=vfat|iso|none     the kind of seed disk (default vfat; without one, only the
#                           agent, the prompt and the power button are looked at)
#   DISK=virtio|scsi|nvme   what the root disk hangs on (default virtio)
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=machine.sh
. "$here/machine.sh"

patience=180 # seconds
image=$(realpath "${1:-$("$here/build-image.sh")}")
make_scratch

make_seed() {
  cat >"$scratch/meta-data" <<'SEED'
instance-id: check-1
local-hostname: checked
SEED
  cat >"$scratch/user-data" <<'SEED'
#cloud-config
users:
  - name: visitor
    shell: /bin/bash
write_files:
  - path: /etc/issue.d/10-check.issue
    content: |
      written by the seed
runcmd:
  - echo "seed done, $(hostname), $(id -un visitor)" >/dev/ttyS0
SEED
  case ${SEED:-vfat} in
    vfat)
      truncate -s 1M "$scratch/seed"
      mkfs.vfat -n CIDATA "$scratch/seed" >/dev/null
      mcopy -i "$scratch/seed" "$scratch/meta-data" "$scratch/user-data" :: ;;
    iso)
      genisoimage -quiet -V cidata -r -o "$scratch/seed" "$scratch"/{meta,user}-data ;;
    none) truncate -s 1M "$scratch/seed" ;;
    *) die "unknown SEED=$SEED" ;;
  esac
}

start_desktop() {
  local disk=virtio-blk-pci,drive=root firmware=()
  case ${DISK:-virtio} in
    virtio) ;;
    scsi) disk=scsi-hd,drive=root ;;
    nvme) disk=nvme,drive=root,serial=root ;;
    *) die "unknown DISK=$DISK" ;;
  esac
  [[ -z ${FIRMWARE:-} ]] ||
    firmware=(-drive "if=pflash,format=raw,readonly=on,file=$FIRMWARE")
  qemu-img create -q -f qcow2 -b "$image" -F qcow2 "$scratch/overlay"
  mkfifo "$scratch/agent.in" "$scratch/agent.out"
  start_machine -M q35 -accel tcg,thread=multi -cpu Nehalem -smp 2 -m 1024 \
    "${firmware[@]}" -device VGA -device virtio-scsi-pci \
    -drive "if=none,id=root,file=$scratch/overlay" -device "$disk,bootindex=1" \
    -drive "if=none,id=seed,format=raw,readonly=on,file=$scratch/seed" \
    -device virtio-blk-pci,drive=seed \
    -netdev user,id=net -device virtio-net-pci,netdev=net \
    -device virtio-serial-pci -chardev "pipe,id=agent,path=$scratch/agent" \
    -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
  exec {to_agent}<>"$scratch/agent.in" {from_agent}<>"$scratch/agent.out"
}

# Sends one command to the agent and prints its answer, waiting $1 seconds.
agent() {
  local line
  printf '%s\n' "$2" >&"$to_agent"
  read -r -t "$1" -u "$from_agent" line || return 1
  printf '%s\n' "$line"
}

# Asks until the agent answers; answers to earlier questions are read away.
await_agent() {
  until agent 1 '{"execute": "guest-ping"}' >/dev/null; do
    kill -0 "$machine_pid" 2>/dev/null || return 1
    (($(now_ms) - started_ms < patience * 1000)) || return 1
  done
  printf '%s\n' "$(($(now_ms) - started_ms))"
  while read -r -t 0.5 -u "$from_agent"; do :; done
}

# Prints what `cat FILE` in the guest gives, by the agent's guest-exec.
read_in_guest() {
  local pid status
  pid=$(agent 20 '{"execute": "guest-exec", "arguments":
    {"path": "/bin/cat", "arg": ["'"$1"'"], "capture-output": true}}' |
    sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
  [[ -n $pid ]] || return 1
  for _ in {1..20}; do
    status=$(agent 20 '{"execute": "guest-exec-status", "arguments": {"pid": '"$pid"'}}')
    if [[ $status == *'"exited": true'* ]]; then
      sed -n 's/.*"out-data": *"\([^"]*\)".*/\1/p' <<<"$status" | base64 -d
      return
    fi
    sleep 0.2
  done
  return 1
}

failed() { tail -n 40 "$scratch/serial" >&2; die "$*"; }

# What cloud-init did with the seed, and what DHCP gave.
check_seed() {
  local seed_ms final_ms issue servers
  seed_ms=$(await_serial 'seed done, checked, visitor' "$patience") ||
    failed "cloud-init did not do what the seed says"
  final_ms=$(await_serial 'Cloud-init v.* finished' "$patience") || failed "cloud-init did not finish"
  issue=$(read_in_guest /etc/issue.d/10-check.issue) || failed "the seed's file is not there"
  [[ $issue == 'written by the seed' ]] || failed "the seed's file says '$issue'"
  servers=$(read_in_guest /etc/resolv.conf) || failed "no resolv.conf"
  [[ $servers == 'nameserver '* ]] || failed "resolv.conf says '$servers'"
  printf 'seed %s\ncloud-init %s\n' "$seed_ms" "$final_ms"
}

make_seed
start_desktop
agent_ms=$(await_agent) || failed "the guest agent does not answer"
boot_id=$(read_in_guest /proc/sys/kernel/random/boot_id) || failed "guest-exec does not work"
[[ $boot_id == *-*-*-*-* ]] || failed "'$boot_id' is no boot id"

host=checked
[[ ${SEED:-} != none ]] || host=desktop
login_ms=$(await_serial "$host login:" "$patience") || failed "no login prompt"
printf 'agent %s\nlogin %s\n' "$agent_ms" "$login_ms"
[[ ${SEED:-} == none ]] || check_seed
[[ -z ${SCREENSHOT:-} ]] || screenshot "$(realpath -m "$SCREENSHOT")"
off_ms=$(power_down 60) || failed "still there 60 s after its power button"
printf 'power-off %s\n' "$off_ms"
