// SPDX-License-Identifier: Apache-2.0

// Package cni holds what the thin plugin and the agent say to each other over the agent's unix
// socket, and the network configuration that both read. It is plain data, stdlib only.
//
// A conversation is one Request and one Response, each a JSON value behind a 4-byte big-endian
// length of at most MaxMessage bytes. For verbs that touch the pod's namespace the plugin attaches
// (SCM_RIGHTS, on the first byte of the request) one file descriptor: a NETLINK_ROUTE socket that
// it opened inside of that namespace. So the agent needs neither CAP_SYS_ADMIN for setns(2) nor a
// mount of the runtime's namespace directory: the pod's end of the veth pair is created through
// that socket, and the host's end by naming the agent's own namespace as the peer's.
package cni

import (
	"fmt"
	"net/netip"
	"strings"
)

// SocketPath is where the agent listens.
const SocketPath = "/run/heliograph/cni.sock"

// MaxMessage is the largest request or response, in bytes without its length.
const MaxMessage = 1 << 20

// Verb is an operation of the CNI specification 1.1.
type Verb string

// The verbs of CNI specification 1.1 §2.
const (
	Add    Verb = "ADD"
	Del    Verb = "DEL"
	Check  Verb = "CHECK"
	Status Verb = "STATUS"
	GC     Verb = "GC"
)

// Attachment names a pod's interface as the runtime does.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Request is what the plugin asks of the agent.
type Request struct {
	Verb       Verb       `json:"verb"`
	Network    string     `json:"network"` // name of the network configuration
	Attachment Attachment `json:"attachment"`
	// Pod is from CNI_ARGS (K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID); may be empty.
	Pod Pod `json:"pod"`
	// MTU of the configuration; 0: the agent's.
	MTU int `json:"mtu,omitempty"`
	// Previous is prevResult's addresses, for CHECK.
	Previous []netip.Prefix `json:"previous,omitempty"`
	// Valid is cni.dev/valid-attachments, for GC.
	Valid []Attachment `json:"valid,omitempty"`
}

// Pod names the pod that an attachment belongs to.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Response is what the agent answers. Error is nil on success.
type Response struct {
	Error *Error `json:"error,omitempty"`
	// Of ADD:
	HostInterface Interface      `json:"hostInterface,omitzero"`
	PodInterface  Interface      `json:"podInterface,omitzero"`
	Addresses     []netip.Prefix `json:"addresses,omitempty"` // /32 and /128
	Gateways      []netip.Addr   `json:"gateways,omitempty"`  // link-local, by family as Addresses
}

// Interface is one end of the pod's veth pair.
type Interface struct {
	Name string `json:"name,omitempty"`
	MAC  string `json:"mac,omitempty"`
	MTU  int    `json:"mtu,omitempty"`
}

// Error is an error result of CNI specification 1.1 §5. Codes below 100 are the specification's.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error codes. Those below 100 are from CNI specification 1.1, "Error".
const (
	CodeUnknownContainer    uint = 3
	CodeInvalidEnvironment  uint = 4
	CodeIO                  uint = 5
	CodeDecode              uint = 6
	CodeInvalidConfig       uint = 7
	CodeTryAgainLater       uint = 11
	CodeNotAvailable        uint = 50 // STATUS: the plugin cannot serve ADD
	CodeLimitedConnectivity uint = 51 // STATUS: and existing containers may have limited connectivity
	CodeNoAddress           uint = 100
	CodeCheckFailed         uint = 101
	CodeInternal            uint = 999
)

// Validate says what is wrong with the names of an attachment (CNI specification 1.1, Section 2,
// "Parameters"), or nil. What passes is safe as the name of a file.
func (a Attachment) Validate() *Error {
	if a.ContainerID == "" || len(a.ContainerID) > 200 || a.ContainerID[0] == '.' ||
		strings.ContainsFunc(a.ContainerID, func(r rune) bool { return !strings.ContainsRune(idChars, r) }) {
		return &Error{Code: CodeInvalidEnvironment, Msg: "invalid CNI_CONTAINERID", Details: fmt.Sprintf("%.80q", a.ContainerID)}
	}
	if a.IfName == "" || len(a.IfName) > 15 || a.IfName == "." || a.IfName == ".." ||
		strings.ContainsFunc(a.IfName, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' || r == ':' || r == '%' }) {
		return &Error{Code: CodeInvalidEnvironment, Msg: "invalid CNI_IFNAME", Details: fmt.Sprintf("%.80q", a.IfName)}
	}
	return nil
}

const idChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"

// Error implements error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}
