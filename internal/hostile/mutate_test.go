// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"bytes"
	"testing"
)

// The recorded messages are whole, and of every kind; what is made of them is never too short to be sent,
// different each time, and the same for the same seed.
func TestMutator(t *testing.T) {
	all, err := Recorded()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[byte]int{}
	for i, m := range all {
		if !bytes.Equal(m, fixed(bytes.Clone(m))) {
			t.Errorf("message %d: its length is not %d", i, len(m))
		}
		kinds[m[18]]++
	}
	for _, typ := range []byte{Open, Update, Notification, Keepalive, Refresh} {
		if kinds[typ] == 0 {
			t.Errorf("no message of type %d", typ)
		}
	}
	a, errA := New(1)
	b, errB := New(1)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	seen := map[string]bool{}
	for range 10_000 {
		x := a.Next()
		if !bytes.Equal(x, b.Next()) {
			t.Fatal("not reproducible")
		}
		if len(x) < headerLen || len(x) > maxLen {
			t.Fatalf("%d octets", len(x))
		}
		seen[string(x)] = true
	}
	if len(seen) < 9000 {
		t.Errorf("%d different ones of 10,000", len(seen))
	}
}
