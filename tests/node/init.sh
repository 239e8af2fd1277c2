#!/bin/bash
# Pid 1 of the node's namespaces. Its argument is the node's directory. What it sets up is seen in here only, and ends
# with it, as do all processes that enter these namespaces.
set -euo pipefail
directory=$1
mount --make-rshared /
hostname node
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/netns /var/lib/kubelet /var/lib/containerd /etc/cni /var/log/pods /var/log/containers
mount --bind "$directory/kubelet" /var/lib/kubelet
mount --bind "$directory/containerd" /var/lib/containerd
for place in /etc/cni /var/log/pods /var/log/containers; do mount -t tmpfs tmpfs "$place"; done
mkdir /etc/cni/net.d
cp "$directory"/etc/cni/* /etc/cni/net.d/

# A kubelet wants these so, and would set them for the whole machine: it reads here that they are.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=/run/sysctl/${setting%%=*}
  mkdir -p "${file%/*}"
  echo "${setting##*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%%=*}"
done

# An address of its own, and a default route that leads nowhere: pods reach each other and nothing else.
ip link set lo up
ip link add eth0 type veth peer name eth0-peer
ip link set eth0 up
ip link set eth0-peer up
ip address add 10.200.0.1/24 dev eth0
ip route add default via 10.200.0.254 dev eth0
sysctl -qw net.ipv4.ip_forward=1
# without it packets between pods of one bridge pass no NetworkPolicy
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then sysctl -qw net.bridge.bridge-nf-call-iptables=1; fi

touch "$directory/initialised"
while :; do sleep infinity & wait; done
