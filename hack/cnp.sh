#!/bin/bash
# Runs the conformance suite of sigs.k8s.io/network-policy-api, at the version of go.mod, against the lab that is up.
#
#	hack/cnp.sh [-d NFTables|IPTables] [-r REGEX]
#
# The suite runs from a copy, in which three things differ: the lab's agnhost image has neither shell nor default
# command, so servers and clients get args instead; it is the version that the lab has; and where the kernel has no SCTP, what
# pokes by SCTP is left out. Exit 0: every test passed.
set -euo pipefail

dataplane='' run='.'
while getopts d:r: o; do
	case $o in
	d) dataplane=$OPTARG ;;
	r) run=$OPTARG ;;
	*) exit 2 ;;
	esac
done
cd "$(dirname "$0")/.."
lab=$PWD/bin/lab
. hack/dataplane.sh
module=$(go list -m -f '{{.Dir}}' sigs.k8s.io/network-policy-api)

work=$(mktemp -d)
cleanup() {
	rm -rf "$work"
	if [ -n "$dataplane" ]; then set_dataplane Auto || true; fi
}
trap cleanup EXIT
if [ -n "$dataplane" ]; then use_dataplane "$dataplane"; fi

cp -r "$module"/{go.mod,go.sum,apis,conformance} "$work"
chmod -R u+w "$work"
base=$work/conformance/base/manifests.yaml
sed -i -E '
	/-client$/ { n; s/$/\n          args: ["pause"]/ }
	s|(e2e-test-images/agnhost):[0-9.]+|\1:2.63.0|
	/command: / {
		s/\{\{ index \.HostNetworkPorts ([0-9]) \}\}/@\1/g
		s|.*\["/bin/bash", "-c", "/agnhost (.*)"\]|["\1"]|
		s/ /", "/g
		s/@([0-9])/{{ index .HostNetworkPorts \1 }}/g
		s/^/          args: /
	}' "$base"
without=''
if ! grep -qw SCTP /proc/net/protocols; then
	without=', without SCTP, which this kernel does not have'
	sed -i 's/args: \["porter"\]/args: ["pause"]/' "$base"
	rm "$work"/conformance/tests/*-sctp-rules.go
	# A statement is two lines.
	sed -i '/PokeServer(.*"sctp",$/,+1d' "$work"/conformance/tests/*.go
fi

$lab kubectl apply --server-side -f "$module"/config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml >/dev/null
$lab kubectl wait --for=condition=Established --timeout=30s crd/clusternetworkpolicies.policy.networking.k8s.io >/dev/null

begun=$(date +%s) code=0
(cd "$work" && CGO_ENABLED=0 KUBECONFIG=/var/lib/heliograph-lab/kubeconfig go test -mod=mod -count=1 -v -timeout 40m ./conformance \
	-run "^TestConformance$/$run" -args --all-features) >"$work/log" 2>&1 || code=$?
passed=$(grep -c '^    --- PASS' "$work/log" || true)
total=$(grep -c '^    --- ' "$work/log" || true)
echo "cnp: $passed of $total tests of network-policy-api passed in $(($(date +%s) - begun)) s${dataplane:+ by $dataplane}$without"
if [ "$code" != 0 ] || [ "$total" = 0 ] || [ "$passed" != "$total" ]; then
	cp "$work/log" bin/cnp.log
	grep -E '^ *--- (FAIL|SKIP)' "$work/log" || tail -5 "$work/log"
	echo "cnp: the log is bin/cnp.log" >&2
	exit 1
fi
