#!/bin/sh
# Installs the Debian packages that the lab and the tests need. Quick when all
# are there: then nothing is downloaded and nothing is written.
#
# Packages come with services (frr, bird, prometheus, containerd) that must not
# run beside the lab, which starts its own in namespaces: a policy-rc.d keeps
# them from starting while they are installed, and what was installed here is
# disabled for the next boot.
set -eu

# The lab: hosts, nodes and routers.
LAB='containerd runc frr iproute2 nftables iptables ipset conntrack procps util-linux'
# What a person or a test runs on the lab's hosts.
TOOLS='bind9-dnsutils iputils-ping iperf3 tcpdump ethtool curl jq ca-certificates'
# Peers and references of the tests and benchmarks.
PEERS='bird2 prometheus containernetworking-plugins'
# The race detector needs cgo.
BUILD='gcc libc6-dev make git'

SERVICES='containerd frr bird bird6 prometheus prometheus-node-exporter iperf3'

# Docker's own packages have containerd and runc too, and Debian's would evict them.
provided() {
	case "$1" in
	containerd | runc) dpkg-query -W -f='${db:Status-Status}\n' containerd.io 2>/dev/null | grep -qx installed ;;
	*) false ;;
	esac
}

missing=''
for p in $LAB $TOOLS $PEERS $BUILD; do
	if provided "$p"; then continue; fi
	dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
if [ -z "$missing" ]; then
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "deps: missing packages:$missing; run hack/deps.sh as root" >&2
	exit 1
fi
echo "deps: installing$missing"

had_service() { [ -e "/etc/init.d/$1" ] || [ -e "/lib/systemd/system/$1.service" ]; }
fresh=''
for s in $SERVICES; do
	had_service "$s" || fresh="$fresh $s"
done

guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
	trap 'rm -f "$guard"' EXIT
	trap 'exit 1' INT TERM HUP
	printf '#!/bin/sh\nexit 101\n' >"$guard"
	chmod 755 "$guard"
fi

export DEBIAN_FRONTEND=noninteractive
install() {
	# shellcheck disable=SC2086 # one word per package
	apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $missing
}
# The lists may be missing or old: refresh them only if the first try says so.
install >/dev/null 2>&1 || { apt-get update -qq && install >/dev/null; }

for s in $fresh; do
	if had_service "$s"; then
		update-rc.d "$s" disable >/dev/null 2>&1 || true
		if [ -d /run/systemd/system ]; then systemctl disable "$s" >/dev/null 2>&1 || true; fi
	fi
done
echo "deps: done"
