// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
)

const (
	port = 8080
	// parallel connections, or requests, at a time.
	parallel = 4
	// chunk is what a stream writes at once, in bytes.
	chunk = 128 << 10
)

// Addresses and devices of the two pods. They are none of those that many gives to its pods.
var (
	clientIP, serverIP         = netip.MustParseAddr("10.250.0.1"), netip.MustParseAddr("10.250.0.2")
	clientDevice, serverDevice = "hel0000000c11e", "hel00000005e12"
)

// pair is a node with two pods, in namespaces NAME-node, NAME-client and NAME-server, and a server in the
// second that answers each byte with a byte, or takes what it is sent after an S.
type pair struct {
	name     string
	listener net.Listener
}

func newPair(name string) (*pair, error) {
	p := &pair{name: name}
	commands := []string{"netns add " + name + "-node"}
	for pod, at := range map[string]struct {
		ip     netip.Addr
		device string
	}{"client": {clientIP, clientDevice}, "server": {serverIP, serverDevice}} {
		ns := name + "-" + pod
		commands = append(commands, "netns add "+ns,
			fmt.Sprintf("-n %s-node link add %s type veth peer name eth0 netns %s", name, at.device, ns),
			fmt.Sprintf("-n %s-node link set %s up", name, at.device), fmt.Sprintf("-n %s link set eth0 up", ns),
			fmt.Sprintf("-n %s address add %s/32 dev eth0", ns, at.ip), fmt.Sprintf("-n %s-node route add %s dev %s", name, at.ip, at.device),
			fmt.Sprintf("-n %s-node address add 169.254.1.1/32 dev %s", name, at.device),
			fmt.Sprintf("-n %s route add 169.254.1.1 dev eth0", ns), fmt.Sprintf("-n %s route add default via 169.254.1.1", ns))
	}
	for _, c := range commands {
		if err := sandbox.Run("ip", strings.Fields(c)...); err != nil {
			return nil, err
		}
	}
	if err := sandbox.Run("nsenter", "--net=/run/netns/"+name+"-node", "sysctl", "-qw", "net.ipv4.ip_forward=1"); err != nil {
		return nil, err
	}
	return p, p.serve()
}

func (p *pair) serve() error {
	err := sandbox.In(p.name+"-server", func() (err error) {
		p.listener, err = net.Listen("tcp", netip.AddrPortFrom(serverIP, port).String()) //nolint:noctx // ends with the sandbox
		return err
	})
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := p.listener.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	return nil
}

func answer(c net.Conn) {
	defer c.Close()
	var b [1]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		if b[0] == 'S' {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		if _, err := c.Write(b[:]); err != nil {
			return
		}
	}
}

// dial connects from the client. Connections are reset, so that none of thousands waits.
func (p *pair) dial() (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
		outer := c.Control(func(fd uintptr) {
			err = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
		return errors.Join(err, outer)
	}}
	return d.Dial("tcp", netip.AddrPortFrom(serverIP, port).String())
}

// loop runs f again and again, on some threads of the client at once, and returns how often in a second.
func (p *pair) loop(lasting time.Duration, begin func() (func() error, error)) (float64, error) {
	var (
		working sync.WaitGroup
		mu      sync.Mutex
		total   int
		failed  error
	)
	start := time.Now()
	for range parallel {
		working.Go(func() {
			n := 0
			err := sandbox.In(p.name+"-client", func() error {
				f, err := begin()
				for ; err == nil && time.Since(start) < lasting; n++ {
					err = f()
				}
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			total, failed = total+n, errors.Join(failed, err)
		})
	}
	working.Wait()
	return float64(total) / time.Since(start).Seconds(), failed
}

// connections opens, asks once, and closes.
func (p *pair) connections(lasting time.Duration) (float64, error) {
	return p.loop(lasting, func() (func() error, error) {
		return func() error {
			c, err := p.dial()
			if err != nil {
				return err
			}
			return errors.Join(request(c), c.Close())
		}, nil
	})
}

// requests asks again and again on connections that stay.
func (p *pair) requests(lasting time.Duration) (float64, error) {
	return p.loop(lasting, func() (func() error, error) {
		c, err := p.dial()
		return func() error { return request(c) }, err
	})
}

// stream sends, and returns bytes in a second.
func (p *pair) stream(lasting time.Duration) (float64, error) {
	buffer := []byte("S" + strings.Repeat("x", chunk-1))
	chunks, err := p.loop(lasting, func() (func() error, error) {
		c, err := p.dial()
		return func() error {
			_, err := c.Write(buffer)
			return err
		}, err
	})
	return chunks * chunk, err
}

func request(c net.Conn) error {
	b := [1]byte{'.'}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}
