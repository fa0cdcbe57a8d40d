#!/usr/bin/env bash
# Boots the tiny guest under plain emulation on each machine type that desktops
# use: it must come up, show its test card, end at the power button, and power off
# by itself when its command line says so.
#
#   SCREENSHOT=FILE.png  keep the picture of the q35's screen
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=machine.sh
. "$here/machine.sh"

kernel=$("$here/build-tiny.sh")
make_scratch

check() {
  local machine_type=$1 up down
  shift
  start_machine -M "$machine_type,accel=tcg" -m 64 -kernel "$kernel" "$@"
  up=$(await_serial '^tiny: ready' 20) || die "$machine_type: not up: $(cat "$scratch/serial")"
  if [[ $machine_type == q35 && -n ${SCREENSHOT:-} ]]; then
    screenshot "$(realpath -m "$SCREENSHOT")"
  fi
  down=$(power_down 10) || die "$machine_type: still there 10 s after its power button"
  grep -q '^tiny: power button' "$scratch/serial" || die "$machine_type: ended by itself"
  printf '%s: up after %s ms, off %s ms after the power button\n' "$machine_type" "$up" "$down"

  start_machine -M "$machine_type,accel=tcg" -m 64 -kernel "$kernel" -append halt "$@"
  timeout 20 tail -s 0.05 --pid="$machine_pid" -f /dev/null || die "$machine_type: did not halt"
  grep -q '^tiny: halt asked for' "$scratch/serial" || die "$machine_type: ended for another reason"
}

check q35 -device VGA
check pc -device VGA
check microvm
