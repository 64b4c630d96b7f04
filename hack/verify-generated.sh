#!/bin/sh
# Fails if generated files are not what their generators make of the sources. Works on a copy, so
# that it neither needs a clean tree nor touches it.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$top"
make -s bin/controller-gen
bin/controller-gen crd paths=./api/... output:crd:dir="$tmp/crd"
bin/controller-gen object:headerFile=/dev/null paths=./api/... output:object:dir="$tmp/deepcopy"
if ! diff -ru config/crd/bases "$tmp/crd"; then
	echo "verify: config/crd/bases is stale: run make manifests" >&2
	exit 1
fi
if ! diff -u api/v1alpha1/zz_generated.deepcopy.go "$tmp/deepcopy/zz_generated.deepcopy.go"; then
	echo "verify: api/v1alpha1/zz_generated.deepcopy.go is stale: run make generate" >&2
	exit 1
fi
