// SPDX-License-Identifier: Apache-2.0

package route

import (
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 26, 0, 0, 254, 80, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 0, 8, 0, 6, 0, 80, 0, 0, 0, 8, 0, 30, 0, 1, 0, 0, 128})
	f.Add([]byte{10, 128, 0, 0, 254, 80, 0, 6, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		p := parser{linkName: func(int) (string, error) { return "eth0", nil }, names: map[uint32]string{}}
		e, ok := p.parse(body)
		if ok && !e.Route.Prefix.IsValid() {
			t.Errorf("invalid prefix %v accepted", e.Route.Prefix)
		}
		if e.Protocol != desired.Protocol && e.Route.Type != 0 {
			t.Errorf("a foreign route was taken for a %v", e.Route)
		}
	})
}
