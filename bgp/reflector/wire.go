// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Message types (RFC 4271 §4.1, RFC 2918).
const (
	msgOpen         = 1
	msgUpdate       = 2
	msgNotification = 3
	msgKeepalive    = 4
	msgRefresh      = 5
)

const (
	headerLen   = 19
	maxMessage  = 4096
	maxExtended = 65535 // RFC 8654
	asTrans     = 23456 // RFC 6793
)

// Error codes (RFC 4271 §4.5, RFC 7313).
const (
	errHeader  = 1
	errOpen    = 2
	errUpdate  = 3
	errHold    = 4
	errFSM     = 5
	errCease   = 6
	errRefresh = 7
	errSend    = 8 // RFC 9687
)

// Subcodes that we send.
const (
	subNotSynchronized = 1 // header
	subBadLength       = 2
	subBadType         = 3

	subVersion      = 1 // OPEN
	subBadPeerAS    = 2
	subBadID        = 3
	subOptParam     = 4
	subBadHoldTime  = 6
	subCapability   = 7
	subMalformed    = 1 // UPDATE
	subUnrecognized = 2
	subOptionalAttr = 9
	subNetwork      = 10

	subOpenSent    = 1 // FSM, RFC 6608
	subOpenConfirm = 2
	subEstablished = 3

	subMaxPrefixes  = 1 // Cease, RFC 4486
	subShutdown     = 2
	subDeconfigured = 3
	subReset        = 4
	subRejected     = 5
	subConfigChange = 6
	subCollision    = 7
	subResources    = 8
)

// notification ends a session. As an error it is one that we send.
type notification struct {
	code, subcode uint8
	data          []byte
	why           string // for log and status; may be empty
}

// Error names it as the speaker does.
func (n *notification) Error() string { return n.text("sent") }

func (n *notification) text(direction string) string {
	s := direction + " " + notificationName(n.code, n.subcode)
	if n.code == errHold && direction == "sent" {
		s = "hold timer expired"
	}
	if n.why != "" {
		s += ": " + n.why
	}
	return s
}

func notify(code, subcode uint8, data []byte, format string, args ...any) *notification {
	return &notification{code: code, subcode: subcode, data: data, why: fmt.Sprintf(format, args...)}
}

func (n *notification) message() []byte {
	b := appendHeader(nil, msgNotification)
	b = append(b, n.code, n.subcode)
	return finish(append(b, n.data...), 0)
}

// innocent tells whether what we send says that the peer did nothing wrong.
func (n *notification) innocent() bool {
	switch n.subcode {
	case subShutdown, subDeconfigured, subConfigChange, subCollision, subRejected:
		return n.code == errCease
	}
	return false
}

// shutdown is a Cease with words for the peer's operator (RFC 9003).
func shutdown(subcode uint8, words string) *notification {
	for len(words) > 255 || !utf8.ValidString(words) {
		words = words[:len(words)-1]
	}
	return &notification{code: errCease, subcode: subcode, data: append([]byte{byte(len(words))}, words...), why: words}
}

// parseNotification reads what a peer sent.
func parseNotification(b []byte) *notification {
	if len(b) < 2 {
		return &notification{why: "too short"}
	}
	n := &notification{code: b[0], subcode: b[1], data: b[2:]}
	if n.code == errCease && (n.subcode == subShutdown || n.subcode == subReset) && len(n.data) > 0 {
		l := int(n.data[0])
		if l <= len(n.data)-1 && utf8.Valid(n.data[1:1+l]) {
			n.why = printable(string(n.data[1 : 1+l]))
		}
	}
	return n
}

// printable takes control characters out of what a peer wrote, since it ends in logs and terminals.
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r == 0x7f {
			out[i] = ' '
		}
	}
	return string(out)
}

// appendHeader begins a message, finish ends the one that began at start.
func appendHeader(b []byte, typ byte) []byte {
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, typ)
}

func finish(b []byte, start int) []byte {
	binary.BigEndian.PutUint16(b[start+16:], uint16(len(b)-start))
	return b
}

// checkHeader returns type and length of a message (RFC 4271 §6.1).
func checkHeader(h []byte, extended bool) (typ byte, length int, bad *notification) {
	for _, m := range h[:16] {
		if m != 0xff {
			return 0, 0, notify(errHeader, subNotSynchronized, nil, "marker is not all ones")
		}
	}
	length, typ = int(binary.BigEndian.Uint16(h[16:])), h[18]
	least, most := headerLen, maxMessage
	switch typ {
	case msgOpen:
		least = headerLen + 10
	case msgUpdate:
		least = headerLen + 4
	case msgNotification:
		least = headerLen + 2
	case msgKeepalive:
		most = headerLen
	case msgRefresh:
		// RFC 7313 §5: a wrong length of this one has an error code of its own.
	default:
		return 0, 0, notify(errHeader, subBadType, []byte{typ}, "type %d", typ)
	}
	if extended && typ != msgOpen && typ != msgKeepalive {
		most = maxExtended
	}
	if length < least || length > most {
		return 0, 0, notify(errHeader, subBadLength, h[16:18:18], "length %d of message type %d", length, typ)
	}
	return typ, length, nil
}

func keepaliveMessage() []byte { return finish(appendHeader(nil, msgKeepalive), 0) }

// The subtypes of ROUTE-REFRESH (RFC 7313).
const (
	refreshRequest = 0
	refreshBegin   = 1
	refreshEnd     = 2
)

func refreshMessage(f family, subtype byte) []byte {
	return finish(append(appendHeader(nil, msgRefresh), 0, f.afi(), subtype, safiUnicast), 0)
}

// endOfRIB is RFC 4724 §2's marker.
func endOfRIB(f family) []byte {
	b := appendHeader(nil, msgUpdate)
	if f == ipv4 {
		return finish(append(b, 0, 0, 0, 0), 0)
	}
	return finish(append(b, 0, 0, 0, 6, flagOptional, attrMPUnreach, 3, 0, f.afi(), safiUnicast), 0)
}

func notificationName(code, subcode uint8) string {
	n, ok := notificationNames()[code]
	switch {
	case !ok:
		return fmt.Sprintf("NOTIFICATION %d/%d", code, subcode)
	case subcode == 0:
		return n[0]
	case int(subcode) < len(n) && n[subcode] != "":
		return n[0] + "/" + n[subcode]
	}
	return fmt.Sprintf("%s/%d", n[0], subcode)
}

// notificationNames has the name of a code, and then those of its subcodes.
func notificationNames() map[uint8][]string {
	return map[uint8][]string{
		errHeader: {"Message Header Error", "Connection Not Synchronized", "Bad Message Length", "Bad Message Type"},
		errOpen: {"OPEN Message Error", "Unsupported Version Number", "Bad Peer AS", "Bad BGP Identifier",
			"Unsupported Optional Parameter", "", "Unacceptable Hold Time", "Unsupported Capability"},
		errUpdate: {"UPDATE Message Error", "Malformed Attribute List", "Unrecognized Well-known Attribute",
			"Missing Well-known Attribute", "Attribute Flags Error", "Attribute Length Error", "Invalid ORIGIN Attribute",
			"", "Invalid NEXT_HOP Attribute", "Optional Attribute Error", "Invalid Network Field", "Malformed AS_PATH"},
		errHold: {"Hold Timer Expired"},
		errFSM: {"Finite State Machine Error", "Unexpected Message in OpenSent", "Unexpected Message in OpenConfirm",
			"Unexpected Message in Established"},
		errCease: {"Cease", "Maximum Number of Prefixes Reached", "Administrative Shutdown", "Peer De-configured",
			"Administrative Reset", "Connection Rejected", "Other Configuration Change", "Connection Collision Resolution",
			"Out of Resources", "Hard Reset", "BFD Down"},
		errRefresh: {"ROUTE-REFRESH Message Error", "Invalid Message Length"},
		errSend:    {"Send Hold Timer Expired"},
	}
}
