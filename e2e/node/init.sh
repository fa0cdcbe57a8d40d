# The first process of a Kubernetes node. It starts in new mount, PID, network, UTS, IPC and cgroup namespaces, gives
# the node folders and settings of its own, says so, and stays. When it ends, the kernel ends all of the node.
#
#   $1  folder of the node
#   $2  name of the node
#   $3  what earlier nodes on this machine found out about QEMU
set -eu
folder=$1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
if ! grep -qv '^0::' /proc/self/cgroup; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while IFS=: read -r _ controllers _; do
    at=/sys/fs/cgroup/${controllers:-unified}
    at=${at##*name=}
    case $at in /*) ;; *) at=/sys/fs/cgroup/$at ;; esac
    mkdir "$at"
    if [ -z "$controllers" ]; then
      mount -t cgroup2 cgroup2 "$at"
      continue
    fi
    case $controllers in name=*) options=none,$controllers ;; *) options=$controllers ;; esac
    mount -t cgroup -o "$options" cgroup "$at"
    # Where the machine has cpu,cpuacct in one, each has its own name too.
    case $controllers in *,*) for one in $(echo "$controllers" | tr , ' '); do ln -s "$controllers" "/sys/fs/cgroup/$one"; done ;; esac
  done </proc/self/cgroup
fi

# What is written below these goes to the node's folder and the machine's own stays as it is.
for path in /etc /var/lib /var/log /var/cache; do
  mkdir -p "$folder/over$path" "$folder/work$path"
  mount -t overlay -o "lowerdir=$path,upperdir=$folder/over$path,workdir=$folder/work$path" overlay "$path"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/libvirt
# Folders of the node on no overlay, on which none more could be mounted.
for path in /var/lib/kubelet /var/lib/containerd /var/lib/gpudesk /var/lib/libvirt /var/log/libvirt /etc/libvirt; do
  mkdir -p "$folder/root$path" "$path"
  mount --bind "$folder/root$path" "$path"
done
mkdir -p /etc/cni/net.d "$folder/root/var/lib/gpudesk/images" /var/cache/libvirt
mount --bind "$3" /var/cache/libvirt
cp "$folder"/settings/libvirt/* /etc/libvirt/
cp "$folder"/settings/cni/* /etc/cni/net.d/

# Values that the kubelet wants of settings of the whole machine: it finds them, and writes nothing to the machine.
while read -r setting value; do
  file=$folder/sysctl-${setting##*/}
  echo "$value" >"$file"
  mount --bind "$file" "/proc/sys/$setting"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
mount --make-rshared /

hostname "$2"
echo 1 >/proc/sys/net/ipv4/ip_forward
: >"$folder/ready"

# What the node's processes leave behind falls to the first one, and the shell takes it away while it waits.
while :; do
  sleep infinity &
  wait $!
done
