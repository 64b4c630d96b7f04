// SPDX-License-Identifier: Apache-2.0

//go:build linux

package nettest

import (
	"net"
	"os"
	"testing"
)

func TestRunIsolates(t *testing.T) {
	Run(t, func(t *testing.T) {
		links, err := net.Interfaces()
		if err != nil || len(links) != 1 {
			t.Fatalf("interfaces = %v, %v; want lo alone", links, err)
		}
		Cmd(t, "ip", "netns", "add", "a")
		Cmd(t, "ip", "link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", "a")
		if entries, err := os.ReadDir("/run"); err != nil || len(entries) != 1 {
			t.Fatalf("/run = %v, %v; want netns alone", entries, err)
		}
	})
}
