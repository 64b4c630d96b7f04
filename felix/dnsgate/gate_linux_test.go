// SPDX-License-Identifier: Apache-2.0

package dnsgate

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/domains"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// The test's namespace is the node, with a pod and a resolver beside it, which has a second address that
// nobody believes.
var (
	trusted = map[string]netip.Addr{"4": netip.MustParseAddr("192.0.2.53"), "6": netip.MustParseAddr("2001:db8::53")}
	others  = map[string]netip.Addr{"4": netip.MustParseAddr("192.0.2.54"), "6": netip.MustParseAddr("2001:db8::54")}
)

func TestHeldUntilHeard(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		g := world(t)
		ctx, cancel := context.WithCancel(t.Context())
		heard, pass, ended := make(chan []byte, 64), make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- Listen(ctx, func(ctx context.Context, m []byte) {
				heard <- m
				select {
				case <-pass:
				case <-ctx.Done():
				}
			})
		}()
		awaitListener(t)
		for family := range trusted {
			for _, network := range []string{"udp", "tcp"} {
				t.Run(network+family, func(t *testing.T) {
					answer := ask(t, network, trusted[family], "example.com.")
					wantHeard(t, heard)
					select {
					case <-answer:
						t.Error("the pod has the answer before it was read")
					case <-time.After(patience / 5):
					}
					pass <- struct{}{}
					wantAnswer(t, answer)
				})
				t.Run(network+family+" of others", func(t *testing.T) {
					wantAnswer(t, ask(t, network, others[family], "others.example.com."))
				})
			}
			t.Run("too late"+family, func(t *testing.T) {
				wantAnswer(t, ask(t, "udp", trusted[family], "example.com."))
				wantHeard(t, heard)
			})
		}
		t.Run("not asked for", func(t *testing.T) {
			inside(t, "dns", func() {
				c, err := net.DialUDP("udp", &net.UDPAddr{IP: trusted["4"].AsSlice(), Port: 54}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 9999})
				if err == nil {
					_, err = c.Write([]byte("anything"))
					_ = c.Close()
				}
				if err != nil {
					t.Error(err)
				}
			})
			wantAnswer(t, ask(t, "udp", others["4"], "others.example.com.")) // comes after it
		})
		for len(heard) > 0 { // of TCP, what was sent again meanwhile
			wantHeard(t, heard)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Listen: %v", err)
		}
		wantAnswer(t, ask(t, "udp", trusted["4"], "example.com.")) // without a listener
		if err := g.handle.Delete(); err != nil {
			t.Error(err)
		}
	})
}

// wantHeard takes a message, which must be an answer of the resolver that is believed.
func wantHeard(t *testing.T, heard <-chan []byte) {
	t.Helper()
	select {
	case m := <-heard:
		if a, ok := domains.Parse(m); !ok || a.Names[0] != "example.com" {
			t.Errorf("heard %v (%v): that is nobody's answer to us", a, ok)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("nobody heard the answer")
	}
}

func TestApply(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close() //nolint:errcheck // only read from
		apply := func(g *Gate, d Desired) {
			t.Helper()
			g.SetDesired(d)
			if err := g.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, whole, err := k.Read()
			if err != nil || whole == d.empty() || !got.equal(d) {
				t.Fatalf("read %v, %v, %v; want %v", got, whole, err, d)
			}
		}
		one := Desired{Devices: []string{"hel1", "hel2"}, Resolvers: []netip.Addr{trusted["4"], trusted["6"]}}
		two := Desired{Devices: []string{"hel2", "hel3"}, Resolvers: []netip.Addr{trusted["6"], others["4"]}}
		g := New(k)
		apply(g, Desired{})
		apply(g, one)
		handle := firstHandle(t)
		apply(g, two)
		apply(New(k), one) // a new process
		if now := firstHandle(t); now != handle {
			t.Errorf("the rules were made anew: handle %s, was %s", now, handle)
		}
		for _, damage := range []string{"delete table inet heliograph-dns", "flush chain inet heliograph-dns forward", "flush set inet heliograph-dns pods"} {
			nettest.Cmd(t, "nft", damage)
			g.QueueResync()
			apply(g, one)
		}
		apply(g, Desired{Devices: []string{"hel1"}})
		if out := nettest.Cmd(t, "nft", "list", "tables"); strings.Contains(out, tableName) {
			t.Errorf("the table is left: %s", out)
		}
	})
}

func firstHandle(t *testing.T) string {
	t.Helper()
	_, after, _ := strings.Cut(nettest.Cmd(t, "nft", "-a", "list", "chain", "inet", tableName, "forward"), "bypass")
	_, after, _ = strings.Cut(after, "# handle ")
	handle, _, _ := strings.Cut(after, "\n")
	return handle
}

// world makes the namespaces, and a gate for the pod's device.
func world(t *testing.T) *Gate {
	t.Helper()
	for _, c := range []struct{ ns, device, node4, there4, node6, there6 string }{
		{"pod", "hel0pod", "10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2/64"},
		{"dns", "uplink", "192.0.2.1/24", "192.0.2.53/24", "2001:db8::1/64", "2001:db8::53/64"},
	} {
		nettest.Cmd(t, "ip", "netns", "add", c.ns)
		nettest.Cmd(t, "ip", "link", "add", c.device, "type", "veth", "peer", "name", "eth0", "netns", c.ns)
		nettest.Cmd(t, "ip", "addr", "add", c.node4, "dev", c.device)
		nettest.Cmd(t, "ip", "addr", "add", c.node6, "dev", c.device, "nodad")
		nettest.Cmd(t, "ip", "link", "set", c.device, "up")
		for _, args := range [][]string{
			{"link", "set", "lo", "up"}, {"link", "set", "eth0", "up"}, {"addr", "add", c.there4, "dev", "eth0"}, {"addr", "add", c.there6, "dev", "eth0", "nodad"},
			{"route", "add", "default", "via", strings.Split(c.node4, "/")[0]}, {"route", "add", "default", "via", strings.Split(c.node6, "/")[0]},
		} {
			nettest.Cmd(t, "ip", append([]string{"-n", c.ns}, args...)...)
		}
	}
	nettest.Cmd(t, "ip", "-n", "dns", "addr", "add", others["4"].String()+"/24", "dev", "eth0")
	nettest.Cmd(t, "ip", "-n", "dns", "addr", "add", others["6"].String()+"/64", "dev", "eth0", "nodad")
	for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serve(t)
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	g := New(k)
	g.SetDesired(Desired{Devices: []string{"hel0pod"}, Resolvers: []netip.Addr{trusted["4"], trusted["6"]}})
	if err := g.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

// inside runs f in a namespace.
func inside(t *testing.T, ns string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// serve has the resolver answer each question with one address.
func serve(t *testing.T) {
	t.Helper()
	inside(t, "dns", func() {
		for _, of := range []map[string]netip.Addr{trusted, others} {
			for _, ip := range of {
				at := netip.AddrPortFrom(ip, dnsPort)
				udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
				if err != nil {
					t.Error(err)
					return
				}
				tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { _, _ = udp.Close(), tcp.Close() })
				go serveUDP(udp)
				go serveTCP(tcp)
			}
		}
	})
}

func serveUDP(c *net.UDPConn) {
	buf := make([]byte, 1024)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(answerTo(buf[:n]), from)
	}
}

func serveTCP(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var length [2]byte
		_, err = io.ReadFull(c, length[:])
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if err == nil {
			if _, err = io.ReadFull(c, question); err == nil {
				a := answerTo(question)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)) //nolint:gosec // short
			}
		}
		_ = c.Close()
	}
}

func answerTo(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil {
		return nil
	}
	m.Response = true
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 5},
		Body:   &dnsmessage.AResource{A: [4]byte{198, 51, 100, 7}},
	}}
	out, _ := m.Pack()
	return out
}

// ask has the pod ask, and returns where its answer will come.
func ask(t *testing.T, network string, resolver netip.Addr, name string) <-chan error {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	question, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	inside(t, "pod", func() {
		c, err := net.DialTimeout(network, netip.AddrPortFrom(resolver, dnsPort).String(), 5*time.Second)
		if err != nil {
			answer <- err
			return
		}
		if network == "tcp" {
			question = append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...) //nolint:gosec // short
		}
		_, err = c.Write(question)
		go func() {
			defer c.Close() //nolint:errcheck // read from
			if err == nil {
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Read(make([]byte, 1024))
			}
			answer <- err
		}()
	})
	return answer
}

func wantAnswer(t *testing.T, answer <-chan error) {
	t.Helper()
	if err := <-answer; err != nil {
		t.Errorf("the pod got no answer: %v", err)
	}
}

// awaitListener waits until the kernel has somebody at our queue.
func awaitListener(t *testing.T) {
	t.Helper()
	for range 200 {
		if out, err := exec.Command("cat", "/proc/self/net/netfilter/nfnetlink_queue").Output(); err == nil && strings.Contains(string(out), fmt.Sprint(queueNumber)) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody listens to the queue")
}
