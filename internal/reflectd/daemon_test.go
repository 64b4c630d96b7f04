// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reflectd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func get(url string) string {
	client := http.Client{Timeout: time.Second}
	r, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

const pair = `asNumber: 64512
routerID: 127.0.0.%d
listen: {addresses: [127.0.0.%d], port: 1179}
metricsAddress: 127.0.0.%d:9813
stateDir: %s
clients:
- {name: other, address: 127.0.0.%d, connect: true, port: 1179, sourceAddress: 127.0.0.%d, connectRetryTime: 1s, passwordFile: %s}
`

// Two daemons peer; a bad file changes nothing, a good one does without a reset; a stopped one is
// remembered as such by its successor.
func TestRun(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		dir := t.TempDir()
		password := filepath.Join(dir, "password")
		files := []string{filepath.Join(dir, "1.yaml"), filepath.Join(dir, "2.yaml")}
		write := func(path, text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		run := func(i int) (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				log := slog.New(slog.NewTextHandler(t.Output(), nil)).With("in", i)
				done <- Run(ctx, Options{File: files[i-1], Log: log, Poll: 20 * time.Millisecond})
			}()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		text := func(i int) string {
			return fmt.Sprintf(pair, i, i, i, filepath.Join(dir, fmt.Sprint(i)), 3-i, i, password)
		}
		write(files[0], text(1))
		write(files[1], text(2))
		defer run(1)()
		stop2 := run(2)
		up := func(n string) func() bool {
			return func() bool {
				return strings.Contains(get("http://127.0.0.1:9813/metrics"),
					`heliograph_reflector_session_up{address="127.0.0.2",peer="other",state="`+n)
			}
		}
		eventually(t, "a session that is held", up(`Held"} 0`))
		write(password, "sesame\n")
		eventually(t, "the session", up(`Established"} 1`))
		if got := get("http://127.0.0.1:9813/healthz"); got != "ok\n" {
			t.Errorf("healthz: %s", got)
		}

		write(files[0], "nonsense")
		write(files[0], strings.Replace(text(1), "clients:", "clients:\n- {name: new, prefix: 127.9.0.0/16}", 1))
		eventually(t, "no flap", func() bool {
			return strings.Contains(get("http://127.0.0.1:9813/metrics"), `heliograph_reflector_session_flaps_total{address="127.0.0.2",peer="other"} 0`)
		})
		eventually(t, "the list of who is connected", func() bool {
			b, _ := os.ReadFile(filepath.Join(dir, "1", "established.json"))
			return string(b) == `{"established":["127.0.0.2"]}`
		})
		stop2()
		eventually(t, "its end", func() bool { return !up(`Established"} 1`)() })
		stop2 = run(2)
		defer stop2()
		eventually(t, "its return", up(`Established"} 1`))
	})
}

func TestRemembers(t *testing.T) {
	dir := t.TempDir()
	d := &daemon{log: slog.New(slog.DiscardHandler), settings: Settings{StateDir: dir}, memory: &Memory{Dir: dir}}
	d.settings.Config.GracefulRestart.Enabled = true
	d.settings.Config.GracefulRestart.RestartTime = time.Minute
	if got := d.remembered(time.Now()); got != nil {
		t.Errorf("a first start: %v", got)
	}
	if err := os.WriteFile(d.memory.file(), []byte(`{"established":["10.0.0.1","2001:db8::1"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.remembered(time.Now()); fmt.Sprint(got) != "[10.0.0.1 2001:db8::1]" {
		t.Errorf("a restart: %v", got)
	}
	if got := d.remembered(time.Now().Add(2 * time.Minute)); got != nil {
		t.Errorf("too late: %v", got)
	}
}

func TestPort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reflector.yaml")
	if err := os.WriteFile(path, []byte("asNumber: 64512\nrouterID: 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]string{0: "[0.0.0.0:1179 [::]:1179]", 179: "[0.0.0.0:179 [::]:179]"} {
		s, err := Options{File: path, Port: port}.load()
		if got := fmt.Sprint(s.Config.Listen); err != nil || got != want {
			t.Errorf("port %d: %s, %v", port, got, err)
		}
	}
}
