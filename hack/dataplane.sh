# For scripts that have $lab: by what the lab's nodes enforce policy.

# set_dataplane sets FelixConfiguration's dataplane.
set_dataplane() {
	printf '{"apiVersion":"heliograph.dev/v1alpha1","kind":"FelixConfiguration","metadata":{"name":"default"},"spec":{"dataplane":"%s"}}' "$1" |
		$lab kubectl apply --server-side --force-conflicts --field-manager=conformance -f - >/dev/null
}

# use_dataplane sets it, and waits until all nodes enforce by it.
use_dataplane() {
	set_dataplane "$1"
	for _ in $(seq 60); do
		others=$($lab kubectl get nodestatuses -o jsonpath='{range .items[*]}{.status.policy.dataplane}{"\n"}{end}' | grep -cvx "$1" || true)
		[ "$others" = 0 ] && return
		sleep 1
	done
	echo "conformance: $others nodes do not enforce by $1 after a minute" >&2
	return 1
}
