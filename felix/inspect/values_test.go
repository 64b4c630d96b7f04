// SPDX-License-Identifier: Apache-2.0

package inspect

import "testing"

// What a URL says is what its query says, or it is refused.
func FuzzParseValues(f *testing.F) {
	for _, s := range []string{"", "within=10.244.0.0%2F16", "containing=fd00::1", "within=::/0&within=::/0", "a=b", "%", "within=10.0.0.1/8;x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := parseValues(raw)
		if err != nil {
			return
		}
		if again, err := parseValues(q.values().Encode()); err != nil || again != q {
			t.Errorf("%q is %+v, and its own text %+v, %v", raw, q, again, err)
		}
		if q.Within.IsValid() && q.Containing.IsValid() {
			t.Errorf("%q has two conditions", raw)
		}
	})
}
