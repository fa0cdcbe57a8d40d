# Runs in a new mount namespace and holds it: gives libvirt folders of its own,
# says so, and stays until its standard input ends.
#
#   $1  folder with etc, run, lib, cache, log
#   $2  "test": when standard input ends, kill all that is left in the namespace
#       "detached": stay until killed
set -eu

bind() {
  mkdir -p "$2"
  mount --bind "$1" "$2"
}
bind "$1/etc" /etc/libvirt
bind "$1/run" /run/libvirt
bind "$1/lib" /var/lib/libvirt
bind "$1/cache" /var/cache/libvirt
bind "$1/log" /var/log/libvirt
# No way to systemd-machined: guests must not appear among those of the machine.
if [ -d /run/dbus ]; then bind "$1/empty" /run/dbus; fi
# In a test the network is its own, too.
if [ "$2" = test ]; then ip link set lo up; fi
: >"$1/ready"

if [ "$2" = detached ]; then exec sleep infinity; fi

# The other end of the pipe closes when the test ends, however it ends.
cat >/dev/null || :
own=$(readlink /proc/self/ns/mnt)
while :; do
  left=0
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [ "$pid" = $$ ] && continue
    if [ "$(readlink "$process/ns/mnt" 2>/dev/null)" = "$own" ]; then
      # This loop's own readlink is gone before it can be looked at.
      kill -KILL "$pid" 2>/dev/null && left=1
    fi
  done
  [ $left = 0 ] && exit 0
done
