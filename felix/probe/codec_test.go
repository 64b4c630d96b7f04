// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/path"
)

func TestCodec(t *testing.T) {
	s := newSealer(testKey)
	for _, pair := range [][2]string{{"10.244.0.1", "10.244.1.1"}, {"fd00:244::1", "fd00:244::2"}} {
		a, b := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		want := message{kind: question, method: path.VXLAN, capabilities: path.CanIPIP, nonce: 0x0123456789abcdef}
		for _, size := range []int{0, 1472} {
			p := s.append(nil, want, size, a, b)
			if len(p) != max(size, packetSize) {
				t.Errorf("size %d for %d", len(p), size)
			}
			got, err := parse(p)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, cmp.AllowUnexported(message{})); d != "" {
				t.Error(d)
			}
			if !s.verify(p, a, b) {
				t.Error("not verified")
			}
			if s.verify(p, b, a) {
				t.Error("verified for the other direction")
			}
			if newSealer([]byte("another")).verify(p, a, b) {
				t.Error("verified with another key")
			}
			for i := range p {
				p[i] ^= 1
				if s.verify(p, a, b) {
					t.Fatalf("verified though byte %d of %d is wrong", i, len(p))
				}
				p[i] ^= 1
			}
			if len(p) > packetSize && s.verify(p[:len(p)-1], a, b) {
				t.Error("verified though cut")
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	a, b := netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("10.244.1.1")
	good := newSealer(testKey).append(nil, message{kind: answer, nonce: 1}, 0, a, b)
	change := func(i int, v byte) []byte {
		p := append([]byte(nil), good...)
		p[i] = v
		return p
	}
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"good", good, nil},
		{"nothing", nil, errSize},
		{"cut", good[:packetSize-1], errSize},
		{"an answer that is padded", append(append([]byte(nil), good...), 0), errSize},
		{"magic", change(0, 'x'), errVersion},
		{"version", change(3, 2), errVersion},
		{"kind", change(4, 3), errFormat},
		{"method", change(5, byte(path.Methods)), errFormat},
		{"reserved", change(7, 1), errFormat},
	} {
		if _, err := parse(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	a, b := netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("10.244.1.1")
	s := newSealer(testKey)
	f.Add(s.append(nil, message{kind: question, nonce: 1}, 0, a, b))
	f.Add(s.append(nil, message{kind: question, nonce: 1}, 1472, a, b))
	f.Add(s.append(nil, message{kind: answer, method: path.VXLAN, capabilities: 3, nonce: 1 << 63}, 0, a, b))
	f.Add([]byte(magic))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := parse(in)
		if err != nil {
			return
		}
		s.verify(in, a, b)
		again, err := parse(s.append(nil, m, len(in), a, b))
		if err != nil || again != m {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
		echoData(in, true, 1)
		echoData(in, false, 1)
	})
}

func TestEcho(t *testing.T) {
	data := []byte("0123456789abcdef0123456789abcdef")
	p := appendEcho(nil, true, 7, 1, data)
	if checksum(p) != 0 {
		t.Errorf("checksum does not add up: %x", checksum(p))
	}
	p[0] = echoReply4
	ip := append(append([]byte{0x45}, make([]byte, 19)...), p...)
	if d := cmp.Diff(data, echoData(ip, true, 7)); d != "" {
		t.Error(d)
	}
	if echoData(ip, true, 8) != nil || echoData(ip[:22], true, 7) != nil {
		t.Error("took another's, or a cut one")
	}
}
