// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

// MarshalText has names stand in JSON, where numbers would change their meaning with this package.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText takes what MarshalText gives.
func (a *Action) UnmarshalText(text []byte) error { return parse(a, text, Log) }

// MarshalText is as Action's.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText takes what MarshalText gives.
func (d *Direction) UnmarshalText(text []byte) error { return parse(d, text, Egress) }

// MarshalText is as Action's.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText takes what MarshalText gives.
func (k *Kind) UnmarshalText(text []byte) error { return parse(k, text, Failsafe) }

func parse[T interface {
	~uint8
	String() string
}](to *T, text []byte, last T) error {
	for v := T(0); v <= last; v++ {
		if v.String() == string(text) {
			*to = v
			return nil
		}
	}
	return fmt.Errorf("%.60q is unknown", text)
}
