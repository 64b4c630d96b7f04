// SPDX-License-Identifier: Apache-2.0

package nexthop

import (
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

func TestGroupRoundTrip(t *testing.T) {
	ids := []desired.NexthopID{1<<31 | 1, 1<<31 | 7}
	if got, want := decodeGroup(encodeGroup(ids)), desired.EncodeGroup(ids); got != want {
		t.Errorf("%x; want %x", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 80, 0, 4, 0, 0, 0, 8, 0, 1, 0, 1, 0, 0, 128, 8, 0, 5, 0, 2, 0, 0, 0, 8, 0, 6, 0, 10, 0, 0, 1})
	f.Add([]byte{0, 0, 80, 0, 0, 0, 0, 0, 8, 0, 1, 0, 1, 0, 0, 128, 12, 0, 2, 0, 1, 0, 0, 128, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		e, ok := parse(body, func(int) (string, error) { return "eth0", nil })
		if ok && e.Nexthop.ID == 0 {
			t.Error("an object without an id was accepted")
		}
		_ = e.Nexthop.Members()
	})
}
