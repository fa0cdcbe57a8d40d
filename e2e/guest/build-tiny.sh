#!/usr/bin/env bash
# Builds the tiny guest (a multiboot kernel, see tiny/main.c) once, and prints its
# path as the last line of standard output. The folder is named by a hash of the
# sources; the file appears in it whole or not at all.
#
#   XDG_CACHE_HOME=DIR  where the folder goes (default ~/.cache)
#   CC=COMPILER         a compiler for i386 (default gcc)
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
key=$(cd "$here" && cat build-tiny.sh tiny/* | sha256sum)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/gpudesk/guest-${key:0:12}
kernel=$folder/tiny.elf

if [[ ! -f $kernel ]]; then
  mkdir -p "$folder"
  unfinished=$(mktemp "$folder/.tiny.XXXXXX")
  trap 'rm -f "$unfinished"' EXIT
  "${CC:-gcc}" -m32 -march=i686 -mgeneral-regs-only -std=c11 -O2 -Wall -Wextra -Werror \
    -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables \
    -nostdlib -static -no-pie -Wl,-T,"$here/tiny/link.ld" -Wl,--build-id=none \
    -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments -Wl,-z,max-page-size=4096 \
    -o "$unfinished" "$here"/tiny/*.S "$here"/tiny/*.c
  chmod 644 "$unfinished"
  mv "$unfinished" "$kernel"
fi
printf '%s\n' "$kernel"
