// SPDX-License-Identifier: Apache-2.0

// Package kernel is the rtnetlink socket (RFC 3549) under the drivers, and the monitor that pokes
// the agent when somebody else changed the kernel.
//
// Conn sends many requests in one datagram and asks for one acknowledgement, and reads dumps into one
// buffer. It knows messages and attributes, but nothing about routes or nexthops: that is the
// drivers' business. Beside it stands what the drivers of nf_tables share: the monitor of a table, its rules as they
// are, networks as ranges, names of devices.
package kernel
