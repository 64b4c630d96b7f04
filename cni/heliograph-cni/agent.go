// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/cni"
)

// ask has one conversation with the agent. A *cni.Error is the agent's answer, any other error means
// that there was none. If nobody listens, it tries again for the time of wait.
func ask(c *config, r cni.Request, timeout, wait time.Duration, files ...*os.File) (cni.Response, error) {
	deadline := time.Now().Add(timeout)
	conn, err := dial(c.Socket, wait)
	if err != nil {
		return cni.Response{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return cni.Response{}, err
	}
	if err := cni.SendRequest(conn, r, files...); err != nil {
		return cni.Response{}, fmt.Errorf("ask the agent: %w", err)
	}
	var response cni.Response
	if err := cni.ReadMessage(conn, &response); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return response, fmt.Errorf("the agent did not answer within %s", timeout)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return response, errors.New("the agent went away before it answered")
		}
		return response, fmt.Errorf("read the agent's answer: %w", err)
	}
	if response.Error != nil {
		return response, response.Error
	}
	return response, nil
}

func dial(path string, wait time.Duration) (*net.UnixConn, error) {
	for end := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			return conn, nil
		}
		away := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EAGAIN)
		if !away || time.Now().After(end) {
			return nil, err
		}
	}
}
