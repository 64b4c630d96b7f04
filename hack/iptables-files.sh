#!/bin/sh
# Prints what of Debian's iptables belongs into the image, a SRC:DST:MODE per line as mkimage takes it: both
# variants of restore and save, the extensions (to save prints the rules of others too), and the libraries
# of all of these.
set -eu

multi() { # PROGRAM NAME...
	program=$(readlink -f "$(command -v "$1")")
	echo "$program" >&3
	shift
	for name in "$@"; do echo "$program:/usr/sbin/$name:0755"; done
}

# ldd names the loader and the libraries by the paths at which the programs look for them.
libraries() { xargs ldd | grep -o '/[^ ]*' | grep -v ':$' | sort -u; }

list=$(mktemp)
trap 'rm -f "$list"' EXIT
exec 3>"$list"
multi xtables-nft-multi iptables-nft-restore iptables-nft-save ip6tables-nft-restore ip6tables-nft-save
multi xtables-legacy-multi iptables-legacy-restore iptables-legacy-save ip6tables-legacy-restore ip6tables-legacy-save
extensions=$(dirname "$(find /usr/lib -name libxt_comment.so | head -n 1)")
for f in "$extensions"/*.so; do
	echo "$f" >&3
	echo "$f:$f:0755"
done
exec 3>&-
libraries <"$list" | while read -r lib; do
	case "$lib" in "$extensions"/*) continue ;; esac
	echo "$(readlink -f "$lib"):$lib:0755"
done
