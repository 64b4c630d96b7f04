// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package explain

import (
	"errors"
	"net/netip"
)

// Explain asks the kernel, of which there is none of our kind.
func Explain(netip.Addr) (Route, error) { return Route{}, errors.ErrUnsupported }
