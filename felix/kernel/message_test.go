// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBatchRoundTrip(t *testing.T) {
	var b Batch
	b.Begin(24, 0x500)
	b.Raw(2, 26, 0, 0)
	b.AttrAddr(1, netip.MustParseAddr("10.0.0.1"))
	b.Attr(3, []byte("lo\x00"))
	b.Begin(25, 0)
	b.Raw(10, 0, 0, 0)
	b.AttrAddr(1, netip.MustParseAddr("2001:db8::1"))
	b.AttrUint32(6, 80)
	var got []string
	for m := range Messages(b.seal(0, 2, 7)) {
		s := fmt.Sprintf("type %d flags %#x seq %d header %d", m.Type, m.Flags, m.Seq, m.Body[0])
		for typ, v := range Attributes(m.Body[4:]) {
			s += fmt.Sprintf(" %d=%x", typ, v)
		}
		got = append(got, s)
	}
	want := []string{
		"type 24 flags 0x501 seq 7 header 2 1=0a000001 3=6c6f00",
		"type 25 flags 0x5 seq 8 header 10 1=20010db8000000000000000000000001 6=50000000",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestBatchIsCutIntoDatagrams(t *testing.T) {
	var small, big Batch
	for range 600 {
		small.Begin(24, 0)
	}
	for range 3 {
		big.Begin(24, 0)
		big.Raw(make([]byte, 30<<10)...)
	}
	for _, tc := range []struct {
		name string
		b    *Batch
		want []int
	}{
		{"by number", &small, []int{256, 256, 88}},
		{"by bytes", &big, []int{2, 1}},
	} {
		var got []int
		for from := 0; from < tc.b.Len(); {
			to := tc.b.fits(from)
			got = append(got, to-from)
			from = to
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v; want %v", tc.name, got, tc.want)
		}
	}
}

func TestParseError(t *testing.T) {
	code := func(e syscall.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	echo := make([]byte, headerLen)
	binary.NativeEndian.PutUint32(echo, 40) // of a request of 40 bytes
	text := append([]byte{12, 0, 1, 0}, "no dev\x00\x00"...)
	tests := []struct {
		name string
		m    Message
		want string
	}{
		{"success", Message{Type: nlmsgError, Body: slices.Concat(code(0), echo)}, ""},
		{"bare", Message{Type: nlmsgError, Body: slices.Concat(code(syscall.EEXIST), echo)}, "file exists"},
		{"text behind a capped echo", Message{Type: nlmsgError, Flags: ackTLVs | ackCapped, Body: slices.Concat(code(syscall.ENODEV), echo, text)}, "no such device: no dev"},
		{"text behind the whole echo", Message{Type: nlmsgError, Flags: ackTLVs, Body: slices.Concat(code(syscall.ENODEV), echo, make([]byte, 24), text)}, "no such device: no dev"},
		{"text cut off", Message{Type: nlmsgError, Flags: ackTLVs, Body: slices.Concat(code(syscall.ENODEV), echo)}, "no such device"},
		{"end of a dump", Message{Type: 3, Body: code(0)}, ""},
		{"end of a dump that failed", Message{Type: 3, Flags: ackTLVs, Body: slices.Concat(code(syscall.ENOENT), text)}, "no such file or directory: no dev"},
		{"end of a dump without a code", Message{Type: 3}, ""},
		{"too short", Message{Type: nlmsgError, Body: []byte{1}}, "acknowledgement of 1 bytes: the kernel's answer got lost"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if err := parseError(tc.m); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("parseError() = %q; want %q", got, tc.want)
			}
		})
	}
}

func TestErrorsAreBounded(t *testing.T) {
	var none Errors
	none.Add(nil)
	if err := none.Err(); err != nil {
		t.Errorf("Err() = %v; want nil", err)
	}
	var e Errors
	for i := range 100 {
		e.Add(fmt.Errorf("route %d: %w", i, &Error{Errno: syscall.ENETDOWN}))
	}
	err := e.Err()
	if lines := strings.Split(err.Error(), "\n"); len(lines) != maxErrors+1 || lines[maxErrors] != "and 95 more" {
		t.Errorf("Err() = %v", err)
	}
	if !errors.Is(err, syscall.ENETDOWN) {
		t.Error("the errno is hidden")
	}
}

func FuzzMessages(f *testing.F) {
	var b Batch
	b.Begin(24, 0)
	b.Raw(2, 26, 0, 0)
	b.AttrUint32(1, 10)
	f.Add(b.seal(0, 1, 1))
	f.Add([]byte{3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		ev := events{own: func(uint32) bool { return false }, ours: func(netip.Prefix) bool { return true }, links: map[int32]link{}}
		total := 0
		for m := range Messages(p) {
			total += headerLen + len(m.Body)
			_ = parseError(m)
			_ = ev.kind(m)
			for _, v := range Attributes(m.Body) {
				_, _, _ = Uint32(v), Addr(v), String(v)
			}
		}
		if total > len(p) {
			t.Errorf("%d bytes of messages in %d", total, len(p))
		}
	})
}
