package cluster

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// Forward accepts on the socket that it inherited as descriptor 3, and joins
// each connection with one of its own to target.
func Forward(target string) error {
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("inherit the listening socket: %w", err)
	}
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept: %w", err)
		}
		if err != nil {
			continue
		}
		go join(conn.(*net.TCPConn), target)
	}
}

func join(in *net.TCPConn, target string) {
	defer func() { _ = in.Close() }()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	out := conn.(*net.TCPConn)
	defer func() { _ = out.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(out, in)
	}()
	pump(in, out)
	<-done
}

// pump copies until one side ends, and tells the other. A broken connection is
// the business of those who talk over it.
func pump(to, from *net.TCPConn) {
	_, _ = io.Copy(to, from)
	_ = to.CloseWrite()
}
