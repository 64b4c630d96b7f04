#!/bin/bash
# Runs upstream Kubernetes' NetworkPolicy conformance specs (test/e2e, focus Netpol) against the lab that is up.
#
#	hack/netpol.sh [-p PROCESSES] [-d NFTables|IPTables] [-f FOCUS]
#
# SCTP is left out where the kernel has none. Each process gets every Nth spec. Exit 0: every spec passed.
set -euo pipefail

processes=1 dataplane='' focus='\[sig-network\] Netpol'
while getopts p:d:f: o; do
	case $o in
	p) processes=$OPTARG ;;
	d) dataplane=$OPTARG ;;
	f) focus=$OPTARG ;;
	*) exit 2 ;;
	esac
done
cd "$(dirname "$0")/.."
lab=bin/lab
. hack/dataplane.sh
bin=$($lab build e2e.test 2>/dev/null)/bin
skip='SCTP'
if grep -qw SCTP /proc/net/protocols; then skip='^$'; fi

work=$(mktemp -d)
pids=''
cleanup() {
	for p in $pids; do kill "$p" 2>/dev/null || true; done
	wait
	rm -rf "$work"
	if [ -n "$dataplane" ]; then set_dataplane Auto || true; fi
}
trap cleanup EXIT

if [ -n "$dataplane" ]; then use_dataplane "$dataplane"; fi

# A dry run prints each spec's name; its labels, in brackets at the end, are no part of what focus looks at.
"$bin/e2e.test" --ginkgo.dry-run --ginkgo.v --ginkgo.no-color --ginkgo.focus="$focus" --ginkgo.skip="$skip" >"$work/dry" 2>/dev/null
grep '^\[sig-network\]' "$work/dry" | sed -E 's/ \[sig-network[^]]*\]$//' | sort >"$work/specs"
total=$(wc -l <"$work/specs")
[ "$total" -gt 0 ] || { echo "netpol: no spec matches $focus" >&2; exit 1; }

begun=$(date +%s)
for i in $(seq 0 $((processes - 1))); do
	mine=$(awk -v n="$processes" -v i="$i" 'NR % n == i' "$work/specs" | sed -E 's/[][().*+?{}|^$\\]/\\&/g' | paste -sd'|')
	$lab exec control "$bin/e2e.test" --provider=skeleton --num-nodes=3 --ginkgo.no-color --ginkgo.v --ginkgo.timeout=60m \
		--ginkgo.focus="$mine" --ginkgo.skip="$skip" >"$work/log.$i" 2>&1 &
	pids="$pids $!"
done
failed=0
for p in $pids; do wait "$p" || failed=1; done
pids=''
passed=$(cat "$work"/log.* | grep -oE '[0-9]+ Passed' | awk '{n += $1} END {print n + 0}')
echo "netpol: $passed of $total specs passed in $(($(date +%s) - begun)) s${dataplane:+ by $dataplane}, $processes at once"
if [ "$failed" != 0 ] || [ "$passed" != "$total" ]; then
	cp "$work"/log.* bin/
	grep -h '\[FAIL\]' "$work"/log.* | sort -u || true
	echo "netpol: the logs are bin/log.*" >&2
	exit 1
fi
