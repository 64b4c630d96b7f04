// The lab's CoreDNS: upstream's server with the plugins that a cluster's
// Corefile uses, and none of the clouds' (they are most of the full build).
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order of the chain; upstream sets it in a package that imports every plugin.
	dnsserver.Directives = []string{
		"cancel", "root", "timeouts", "bind", "debug", "ready", "health",
		"errors", "log", "cache", "loadbalance", "kubernetes",
	}
	coremain.Run()
}
