// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

const (
	nlmsgError  = 2     // NLMSG_ERROR
	ackTLVs     = 0x200 // NLM_F_ACK_TLVS
	ackCapped   = 0x100 // NLM_F_CAPPED
	ackTextAttr = 1     // NLMSGERR_ATTR_MSG
)

// parseError reads an acknowledgement (NLMSG_ERROR) or the end of a dump (NLMSG_DONE): nil for
// success, otherwise an *Error.
func parseError(m Message) error {
	if len(m.Body) < 4 {
		if m.Type == nlmsgError {
			return fmt.Errorf("acknowledgement of %d bytes: %w", len(m.Body), ErrNoAnswer)
		}
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.Body))
	if code >= 0 {
		return nil
	}
	e := &Error{Errno: syscall.Errno(-code)}
	if m.Flags&ackTLVs == 0 {
		return e
	}
	for typ, v := range Attributes(m.Body[textOffset(m):]) {
		if typ == ackTextAttr {
			e.Message = String(v)
		}
	}
	return e
}

// textOffset is where the attributes of an acknowledgement begin: behind the code and the echo of
// the request, which is the header alone if capped. The end of a dump has no echo.
func textOffset(m Message) int {
	if m.Type != nlmsgError {
		return 4
	}
	off := 4 + headerLen
	if m.Flags&ackCapped == 0 && len(m.Body) >= off {
		off = 4 + align(int(binary.NativeEndian.Uint32(m.Body[4:])&0xffffff))
	}
	return min(off, len(m.Body))
}
