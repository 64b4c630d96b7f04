// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// RestoreError is what iptables-restore says when it does not do what it should.
type RestoreError struct {
	Command string
	Code    int // exit code
	Output  string
}

// Error implements error.
func (e *RestoreError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, strings.Join(strings.Fields(e.Output), " "))
}

// transient says whether an error may be gone next time, so nothing is to be concluded from it.
func transient(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []syscall.Errno{syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR, syscall.EBUSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var r *RestoreError
	if !errors.As(err, &r) {
		return false
	}
	if r.Code < 0 { // killed
		return true
	}
	const resourceProblem = 4 // as iptables says, the lock among them
	for _, text := range []string{"Resource temporarily unavailable", "Device or resource busy", "Cannot allocate memory", "No buffer space"} {
		if strings.Contains(r.Output, text) {
			return true
		}
	}
	return r.Code == resourceProblem && strings.Contains(r.Output, "lock")
}
