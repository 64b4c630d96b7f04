#!/bin/sh
# Makes what hack/vm/run boots: Debian's cloud kernel, and an initramfs with its
# modules, busybox and the tools that tests call. All goes below
# ${XDG_CACHE_HOME:-~/.cache}/heliograph-vm; the kernel package is only unpacked
# there, never installed. Quick when all is there. Prints the directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/heliograph-vm

# What the tests need of the host. Run as root, what is missing is installed.
PACKAGES='qemu-system-x86 busybox-static kmod util-linux iproute2 nftables iputils-ping conntrack tcpdump bird2 iperf3'
# What the host kernel of a test machine may lack, and what the drivers use.
MODULES='
	veth bridge dummy vxlan geneve ipip sit ip_gre ip6_gre ip6_tunnel fou fou6 wireguard vrf
	macvlan ipvlan 8021q ifb tun
	sch_netem sch_htb sch_ingress sch_clsact cls_u32 cls_bpf act_mirred
	nf_tables nft_ct nft_nat nft_masq nft_chain_nat nft_redir nft_reject_inet nft_reject_ipv4 nft_reject_ipv6
	nft_fib nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_limit nft_log nft_hash nft_numgen nft_queue nft_quota
	nft_socket nft_tproxy nft_compat nft_objref nft_synproxy nft_tunnel nft_xfrm nft_osf nft_connlimit nft_flow_offload
	nf_conntrack nf_conntrack_netlink nf_nat nfnetlink nfnetlink_log nfnetlink_queue
	ip_set ip_set_hash_ip ip_set_hash_net ip_set_hash_ipport ip_set_hash_ipportnet ip_set_hash_netport ip_set_bitmap_port
	ip_tables ip6_tables iptable_filter iptable_nat iptable_mangle iptable_raw ip6table_filter ip6table_nat ip6table_mangle ip6table_raw
	xt_set xt_mark xt_connmark xt_comment xt_conntrack xt_multiport xt_MASQUERADE xt_TCPMSS xt_addrtype xt_CT xt_nat
	af_packet_diag inet_diag tcp_diag udp_diag unix_diag tcp_bbr'
# Loaded at boot. The rest is loaded by the kernel on demand, except in places where a process in a
# user namespace may not ask for it.
EARLY='veth bridge vxlan dummy nf_tables nft_ct nft_masq nft_chain_nat nf_conntrack_netlink'
# bird stands for a top-of-rack switch where whole agents are tested.
TOOLS='ip bridge tc ss nft ping conntrack nsenter unshare sysctl tcpdump bird birdc iperf3'

missing=''
for p in $PACKAGES; do
	dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "vm: missing packages:$missing; run hack/vm/build.sh as root once" >&2
		exit 1
	fi
	echo "vm: installing$missing" >&2
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086 # one word per package
	install() { apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $missing >/dev/null; }
	install 2>/dev/null || { apt-get update -qq >&2 && install >&2; }
fi

# One build at a time, and none if the last was made of the same.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
stamp=$(cat "$here/build.sh" "$here/init" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ]; then
	echo "$cache"
	exit 0
fi

rm -rf "$cache/stamp" "$cache/work"
work=$cache/work
mkdir -p "$work/deb" "$work/kernel" "$work/root"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# The meta package names the one with the kernel of today.
package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends:/ { print $2; exit }'; }
[ -n "$(package)" ] || apt-get update -qq >&2
(cd "$work/deb" && apt-get download -qq "$(package)" 2>/dev/null) ||
	{ apt-get update -qq >&2 && (cd "$work/deb" && apt-get download -qq "$(package)"); }
dpkg-deb -x "$work"/deb/*.deb "$work/kernel"
version=$(ls "$work/kernel/lib/modules")
cp "$work/kernel/boot/vmlinuz-$version" "$cache/vmlinuz"

# Modules, with those that they depend on.
depmod -b "$work/kernel" "$version"
root=$work/root
mkdir -p "$root/lib/modules/$version"
for m in $MODULES; do
	modprobe -d "$work/kernel" -S "$version" --show-depends "$m" 2>/dev/null |
		awk '$1 == "insmod" { print $2 }' || echo "vm: kernel $version has no module $m" >&2
done | sort -u | while read -r file; do
	mkdir -p "$root/lib/modules/$version/$(dirname "${file#"$work/kernel/lib/modules/$version/"}")"
	cp "$file" "$root/lib/modules/$version/${file#"$work/kernel/lib/modules/$version/"}"
done
cp "$work/kernel/lib/modules/$version"/modules.builtin* "$work/kernel/lib/modules/$version/modules.order" "$root/lib/modules/$version/"
depmod -b "$root" "$version"

# Tools: busybox for the everyday ones, and the host's own with their libraries.
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/root" "$root/etc" "$root/var/run"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
ln -s bin "$root/sbin"
mkdir -p "$root/usr" && ln -s ../bin "$root/usr/bin" && ln -s ../bin "$root/usr/sbin"
for tool in $TOOLS; do
	file=$(command -v "$tool") || { echo "vm: no $tool here" >&2; exit 1; }
	rm -f "$root/bin/$tool"
	cp -L "$file" "$root/bin/$tool"
	# Lines of ldd: "name => file (address)", and the loader's, "file (address)".
	ldd "$file" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r lib; do
		[ -e "$root$lib" ] || { mkdir -p "$root$(dirname "$lib")" && cp -L "$lib" "$root$lib"; }
	done
done
# tcpdump drops its rights to a user of that name.
printf 'root:x:0:0:root:/root:/bin/sh\ntcpdump:x:100:100::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\ntcpdump:x:100:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
printf '%s\n' "$EARLY" >"$root/etc/modules.early"
cp "$here/init" "$root/init"
chmod 755 "$root/init"

(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$cache/base.cpio"
printf '%s\n' "$version" >"$cache/version"
printf '%s\n' "$stamp" >"$cache/stamp"
echo "vm: kernel $version, initramfs $(du -h "$cache/base.cpio" | cut -f1)" >&2
echo "$cache"
