# Whether this machine lets a Kubernetes node be made; what it does not is printed. It runs in new namespaces, as init.sh.
#
#   $1  an empty folder where the node's own would be
set -u
try() {
  what=$1
  shift
  words=$("$@" 2>&1) || { echo "$what: $(echo "$words" | tail -n 1)"; exit 1; }
}

try 'no /proc of its own' mount -t proc proc /proc
try 'no /sys of its own' mount -t sysfs sysfs /sys
mkdir -p "$1/over" "$1/work"
try "no overlay over /etc with $1 on top (a folder of another kind of file system may do, see GPUDESK_STATE_DIR)" \
  mount -t overlay -o "lowerdir=/etc,upperdir=$1/over,workdir=$1/work" overlay /etc
try 'no memory file system' mount -t tmpfs tmpfs /run
try 'no bridge' ip link add nodes type bridge
try 'no pair of cabled interfaces' ip link add port type veth peer name eth0
try 'no forwarding of packets' sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
try 'no rules of iptables' iptables -t nat -A POSTROUTING -m comment --comment probe -m addrtype ! --dst-type LOCAL -j MASQUERADE
