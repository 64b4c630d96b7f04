// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package reflector

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

var errLinuxOnly = errors.New("works on Linux only")

func listenControl(string, string, syscall.RawConn) error { return nil }

func dialControl(p Peer) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error {
		if p.Password != "" || p.TTLHops > 0 {
			return errLinuxOnly
		}
		return nil
	}
}

func setListenerPassword(net.Listener, netip.Prefix, string) error { return errLinuxOnly }

func setTTL(net.Conn, uint8) error { return errLinuxOnly }

func setPatience(net.Conn, time.Duration) error { return nil }
