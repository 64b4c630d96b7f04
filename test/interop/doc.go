// SPDX-License-Identifier: Apache-2.0

// Package interop runs heliograph's speaker against the routers that people have: FRR and BIRD 2 as
// a top-of-rack router with an eBGP session over IPv4 for both families. Each test makes network
// and mount namespaces of its own, as real root, because FRR wants to become the user frr. It needs
// the Debian packages frr and bird2 (hack/deps.sh).
package interop
