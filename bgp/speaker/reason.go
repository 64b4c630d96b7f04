// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"strings"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heliograph-dev/heliograph/bgp"
)

// report is a reason for a session to be down, in words.
type report struct {
	text string
	// vague: it says how the session ended rather than why, so it replaces nothing better.
	vague bool
	// connecting: it is about a new attempt, so it replaces why the session once ended.
	connecting bool
	// timeout: nobody answered; with a password the password may be the reason.
	timeout bool
	// wrongASN: the peer's OPEN had another AS number than it should.
	wrongASN bool
	// silent: the peer said nothing for the hold time.
	silent bool
}

// textFor completes the words with what is known of the peer.
func (r report) textFor(p bgp.Peer) string {
	switch {
	case r.wrongASN:
		return fmt.Sprintf("peer AS is not %d (%s)", p.ASN, r.text)
	case r.timeout && p.Password != "":
		return r.text + " (do the MD5 passwords agree?)"
	}
	return r.text
}

// parseState reads a state event of GoBGP.
func parseState(e *apiutil.WatchEventMessage_PeerEvent) stateChange {
	st := e.Peer.State
	return stateChange{
		peer:         st.NeighborAddress.Unmap(),
		state:        sessionState(st.SessionState),
		reason:       parseReason(st),
		graceful:     st.DisconnectReason == api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART,
		capabilities: parseCapabilities(st.RemoteCap),
	}
}

func sessionState(s packet.FSMState) bgp.SessionState {
	switch s {
	case packet.BGP_FSM_CONNECT:
		return bgp.StateConnect
	case packet.BGP_FSM_ACTIVE:
		return bgp.StateActive
	case packet.BGP_FSM_OPENSENT:
		return bgp.StateOpenSent
	case packet.BGP_FSM_OPENCONFIRM:
		return bgp.StateOpenConfirm
	case packet.BGP_FSM_ESTABLISHED:
		return bgp.StateEstablished
	}
	return bgp.StateIdle
}

// parseReason says why a state changed, if it changed for the worse. Notifications have no words
// here: the tap has read them, with their codes, from GoBGP's log.
func parseReason(st apiutil.PeerState) report {
	switch st.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED:
		return report{text: "hold timer expired", silent: true}
	case api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART, api.PeerState_DISCONNECT_REASON_READ_FAILED:
		return report{text: "connection closed by peer", vague: true}
	case api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		return report{text: "connection broken", vague: true}
	case api.PeerState_DISCONNECT_REASON_BAD_PEER_AS:
		return report{text: "sent OPEN Message Error/Bad Peer AS", wrongASN: true}
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		// In OpenConfirm GoBGP does not tell a NOTIFICATION from another message.
		return report{text: "peer refused our OPEN", vague: true}
	}
	return report{}
}

// notificationText names a NOTIFICATION (RFC 4271 §4.5, RFC 4486, RFC 9003), for example
// "received Cease/Administrative Shutdown: maintenance".
func notificationText(direction string, code, subcode uint8, communication string) report {
	r := report{text: direction + " " + notificationName(code, subcode)}
	switch {
	case code == packet.BGP_ERROR_HOLD_TIMER_EXPIRED && direction == "sent":
		r.text, r.silent = "hold timer expired", true
	case code == packet.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == packet.BGP_ERROR_SUB_BAD_PEER_AS && direction == "sent":
		r.wrongASN = true
	case code == packet.BGP_ERROR_CEASE && direction == "sent":
		// Our own doing, and whoever did it has said why.
		r.vague = subcode == packet.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || subcode == packet.BGP_ERROR_SUB_PEER_DECONFIGURED
	case code == packet.BGP_ERROR_FSM_ERROR && direction == "sent":
		// What GoBGP answers if the peer's first message is not OPEN: that was its NOTIFICATION.
		r = report{text: "peer refused our OPEN", vague: true}
	}
	if communication != "" {
		r.text += ": " + communication
	}
	return r
}

var notificationNames = map[uint8]struct {
	name     string
	subcodes []string // from 1
}{
	1: {"Message Header Error", []string{"Connection Not Synchronized", "Bad Message Length", "Bad Message Type"}},
	2: {"OPEN Message Error", []string{"Unsupported Version Number", "Bad Peer AS", "Bad BGP Identifier",
		"Unsupported Optional Parameter", "", "Unacceptable Hold Time", "Unsupported Capability"}},
	3: {"UPDATE Message Error", []string{"Malformed Attribute List", "Unrecognized Well-known Attribute",
		"Missing Well-known Attribute", "Attribute Flags Error", "Attribute Length Error", "Invalid ORIGIN Attribute",
		"", "Invalid NEXT_HOP Attribute", "Optional Attribute Error", "Invalid Network Field", "Malformed AS_PATH"}},
	4: {"Hold Timer Expired", nil},
	5: {"Finite State Machine Error", []string{"Unexpected Message in OpenSent", "Unexpected Message in OpenConfirm",
		"Unexpected Message in Established"}},
	6: {"Cease", []string{"Maximum Number of Prefixes Reached", "Administrative Shutdown", "Peer De-configured",
		"Administrative Reset", "Connection Rejected", "Other Configuration Change", "Connection Collision Resolution",
		"Out of Resources", "Hard Reset", "BFD Down"}},
	7: {"ROUTE-REFRESH Message Error", []string{"Invalid Message Length"}},
}

func notificationName(code, subcode uint8) string {
	n, ok := notificationNames[code]
	switch {
	case !ok:
		return fmt.Sprintf("NOTIFICATION %d/%d", code, subcode)
	case subcode == 0:
		return n.name
	case int(subcode) <= len(n.subcodes) && n.subcodes[subcode-1] != "":
		return n.name + "/" + n.subcodes[subcode-1]
	}
	return fmt.Sprintf("%s/%d", n.name, subcode)
}

// dialText shortens the error of a failed connection attempt to its cause.
func dialText(msg string) report {
	if strings.Contains(msg, "i/o timeout") || strings.Contains(msg, "connection timed out") {
		return report{text: "connection timed out", connecting: true, timeout: true}
	}
	if i := strings.LastIndex(msg, ": "); i >= 0 {
		msg = msg[i+2:]
	}
	return report{text: msg, connecting: true}
}
