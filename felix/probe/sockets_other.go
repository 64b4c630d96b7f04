// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package probe

import (
	"errors"

	"github.com/heliograph-dev/heliograph/felix/path"
)

func openSockets([path.Methods]uint32, func(int) path.Method) (sockets, error) {
	return nil, errors.ErrUnsupported
}
