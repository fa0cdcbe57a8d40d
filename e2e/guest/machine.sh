# Starting a throw-away QEMU and talking to it, for the check scripts beside this
# file, which source it. One machine at a time; it is gone when the script ends.
# shellcheck shell=bash

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# Milliseconds of the wall clock.
now_ms() { printf '%s\n' "$((${EPOCHREALTIME/./} / 1000))"; }

# Sets the global $scratch to a new folder that goes when the script ends, together
# with the machine.
make_scratch() {
  scratch=$(mktemp -d)
  trap end_machine EXIT
}

end_machine() {
  [[ -z ${machine_pid:-} ]] || kill -KILL "$machine_pid" 2>/dev/null || true
  rm -rf "$scratch"
}

# Starts QEMU with the given arguments, its serial port in $scratch/serial, and a
# QMP connection. Sets $started_ms.
start_machine() {
  : >"$scratch/serial"
  started_ms=$(now_ms)
  coproc machine {
    exec qemu-system-x86_64 -display none -nodefaults -no-reboot \
      -serial "file:$scratch/serial" -qmp stdio "$@" 2>"$scratch/qemu.log"
  }
  machine_pid=$!
  exec {from_qmp}<&"${machine[0]}" {to_qmp}>&"${machine[1]}"
  qmp '{"execute": "qmp_capabilities"}'
}

# Sends one command and waits for its answer; events are passed over.
qmp() {
  local line
  printf '%s\n' "$1" >&"$to_qmp"
  while read -r -t 20 -u "$from_qmp" line; do
    case $line in
      '{"return"'*) return ;;
      '{"error"'*) die "QMP refused $1: $line" ;;
    esac
  done
  die "no answer to $1: $(cat "$scratch/qemu.log")"
}

# Waits until the serial port has shown the extended regular expression $1, for at
# most $2 seconds after the start; prints the milliseconds it took.
await_serial() {
  until grep -qE "$1" "$scratch/serial"; do
    kill -0 "$machine_pid" 2>/dev/null || return 1
    (($(now_ms) - started_ms < $2 * 1000)) || return 1
    sleep 0.05
  done
  printf '%s\n' "$(($(now_ms) - started_ms))"
}

# Presses the power button and waits at most $1 seconds for the end of the machine;
# prints the milliseconds it took.
power_down() {
  local pressed_ms
  pressed_ms=$(now_ms)
  qmp '{"execute": "system_powerdown"}'
  while kill -0 "$machine_pid" 2>/dev/null; do
    (($(now_ms) - pressed_ms < $1 * 1000)) || return 1
    sleep 0.05
  done
  printf '%s\n' "$(($(now_ms) - pressed_ms))"
}

# Saves what the screen shows as a PNG file.
screenshot() {
  qmp '{"execute": "screendump", "arguments": {"format": "png", "filename": "'"$1"'"}}'
}
