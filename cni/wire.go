// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// maxFiles is how many descriptors a receiver has room for; the kernel closes what does not fit.
const maxFiles = 4

// ErrTooLarge says that a message is longer than MaxMessage.
var ErrTooLarge = errors.New("message is longer than the protocol allows")

// WriteMessage writes v as JSON behind its length.
func WriteMessage(w io.Writer, v any) error {
	buf, err := encode(v)
	if err != nil {
		return err
	}
	_, err = w.Write(buf)
	return err
}

// ReadMessage reads one message into v. It allocates as the bytes arrive, not as the length
// promises. A length of more than MaxMessage is ErrTooLarge.
func ReadMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("%d bytes: %w", n, ErrTooLarge)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if len(body) < int(n) {
		return fmt.Errorf("read message: %d of %d bytes: %w", len(body), n, io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// SendRequest sends a request with descriptors attached to its first byte. The files stay the
// caller's.
func SendRequest(c *net.UnixConn, r Request, files ...*os.File) error {
	buf, err := encode(r)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(buf, oob, nil)
	if err == nil && n < len(buf) {
		_, err = c.Write(buf[n:])
	}
	return err
}

// ReceiveRequest reads a request and the descriptors that came with its first byte, which the
// caller must close, after an error too. Descriptors sent with later bytes are closed by the
// kernel, since nobody asks for them.
func ReceiveRequest(c *net.UnixConn) (Request, []*os.File, error) {
	var r Request
	var first [1]byte
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(first[:], oob)
	files := parseFiles(oob[:oobn])
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return r, files, fmt.Errorf("read length: %w", err)
	}
	return r, files, ReadMessage(io.MultiReader(firstByte(first[0]), c), &r)
}

func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return nil, fmt.Errorf("%d bytes: %w", len(body), ErrTooLarge)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), nil
}

// parseFiles takes every descriptor out of control messages; what cannot be parsed holds none.
func parseFiles(oob []byte) []*os.File {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from plugin"))
		}
	}
	return files
}

func firstByte(b byte) io.Reader { return &oneByte{b: b} }

type oneByte struct {
	b    byte
	done bool
}

func (o *oneByte) Read(p []byte) (int, error) {
	if o.done || len(p) == 0 {
		return 0, io.EOF
	}
	o.done, p[0] = true, o.b
	return 1, nil
}
