// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessageRoundTrip(t *testing.T) {
	want := Request{
		Verb: Check, Network: "n", Attachment: Attachment{ContainerID: "c", IfName: "eth0"},
		Pod: Pod{Namespace: "default", Name: "web"}, Previous: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
	}
	var buf bytes.Buffer
	if err := WriteMessage(&buf, want); err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := ReadMessage(&buf, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadMessageRefuses(t *testing.T) {
	message := func(n uint32, body string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), body...) }
	for _, tc := range []struct {
		name string
		in   []byte
		want error // nil: any
	}{
		{"nothing", nil, io.EOF},
		{"half a length", []byte{0, 0}, io.ErrUnexpectedEOF},
		{"too long", message(MaxMessage+1, ""), ErrTooLarge},
		{"much too long", message(1<<32-1, ""), ErrTooLarge},
		{"cut off", message(100, "{"), io.ErrUnexpectedEOF},
		{"empty", message(0, ""), nil},
		{"not JSON", message(4, "what"), nil},
		{"deep", message(20000, strings.Repeat("[", 20000)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Request
			if err := ReadMessage(bytes.NewReader(tc.in), &r); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("err = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestWriteMessageRefusesWhatNobodyReads(t *testing.T) {
	var buf bytes.Buffer
	if err := WriteMessage(&buf, strings.Repeat("x", MaxMessage)); !errors.Is(err, ErrTooLarge) || buf.Len() > 0 {
		t.Errorf("err = %v, %d bytes written", err, buf.Len())
	}
}

func TestValidateAttachment(t *testing.T) {
	for _, tc := range []struct {
		in Attachment
		ok bool
	}{
		{Attachment{"c0ffee", "eth0"}, true},
		{Attachment{"a.b_c-d", "net1"}, true},
		{Attachment{"", "eth0"}, false},
		{Attachment{"c", ""}, false},
		{Attachment{"../c", "eth0"}, false},
		{Attachment{".c", "eth0"}, false},
		{Attachment{"c@d", "eth0"}, false},
		{Attachment{strings.Repeat("c", 201), "eth0"}, false},
		{Attachment{"c", "eth0/.."}, false},
		{Attachment{"c", ".."}, false},
		{Attachment{"c", "a b"}, false},
		{Attachment{"c", "eth%d"}, false}, // the kernel would number it
		{Attachment{"c", strings.Repeat("e", 16)}, false},
	} {
		if err := tc.in.Validate(); (err == nil) != tc.ok {
			t.Errorf("%v: %v", tc.in, err)
		}
	}
}

func TestTombstones(t *testing.T) {
	p := Tombstones{Dir: t.TempDir() + "/not/there/yet"}
	if got, err := p.List(); got != nil || err != nil {
		t.Errorf("no directory: %v, %v", got, err)
	}
	a := Attachment{ContainerID: "c-1", IfName: "eth-0"}
	for range 2 {
		if err := p.Add(a); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := p.List(); err != nil || len(got) != 1 || got[0] != a || !p.Has(a) {
		t.Errorf("list = %v, %v", got, err)
	}
	for range 2 {
		if err := p.Remove(a); err != nil || p.Has(a) {
			t.Errorf("remove: %v", err)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	var buf bytes.Buffer
	_ = WriteMessage(&buf, Request{Verb: Add, Attachment: Attachment{ContainerID: "c", IfName: "eth0"}})
	f.Add(buf.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		if ReadMessage(bytes.NewReader(b), &r) == nil {
			_ = r.Attachment.Validate()
		}
		_ = parseFiles(nil)
	})
}
