// SPDX-License-Identifier: Apache-2.0

// Command heliograph-cni is the CNI plugin that container runtimes run. It asks the agent of its node
// for everything, and holds no credentials. What only a process of the host can do it does itself: it
// opens a netlink socket in the pod's network namespace and passes that on.
//
// When no agent answers, an ADD fails and is tried again by the runtime, but a DEL is promised: a
// file says that it is owed, and the agent carries it out when it is back (cni.Tombstones).
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

// release is set by the linker.
var release = "devel"

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status},
		version.PluginSupports("0.4.0", "1.0.0", "1.1.0"), "CNI plugin heliograph "+release)
}
