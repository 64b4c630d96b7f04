// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrNoAnswer says that the kernel's answer to a request got lost: whether it was carried out is not
// known, so the state has to be read again.
var ErrNoAnswer = errors.New("the kernel's answer got lost")

// ErrInterrupted says that the kernel changed during a dump, again and again: the dump may lack
// something or hold it twice. What was read is usable, but should be read again later.
var ErrInterrupted = errors.New("dump interrupted by changes")

// Error is the kernel's refusal of a request. errors.Is finds the Errno.
type Error struct {
	Errno   syscall.Errno
	Message string // the kernel's own words (extended ack), if it had any
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Errno }

// Gone tells whether a delete failed because there was nothing to delete: IPv4 routes say ESRCH,
// nexthops and addresses ENOENT or EADDRNOTAVAIL, and what was on a device that is gone ENODEV.
func Gone(err error) bool {
	return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT) ||
		errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENODEV)
}

// maxErrors is how many failures a joined error spells out.
const maxErrors = 5

// Errors joins independent failures into one error, of bounded length: when a device is down all of
// 100k routes may fail for the same reason.
type Errors struct {
	first []error
	n     int
}

// Add counts a failure; nil is none.
func (e *Errors) Add(err error) {
	if err == nil {
		return
	}
	if e.n++; len(e.first) < maxErrors {
		e.first = append(e.first, err)
	}
}

// Err returns the joined failures, nil if there were none.
func (e *Errors) Err() error {
	if e.n <= len(e.first) {
		return errors.Join(e.first...)
	}
	return errors.Join(append(e.first[:len(e.first):len(e.first)], fmt.Errorf("and %d more", e.n-len(e.first)))...)
}
