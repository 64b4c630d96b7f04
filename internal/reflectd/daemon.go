// SPDX-License-Identifier: Apache-2.0

package reflectd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

// Options are what the command line says.
type Options struct {
	File string
	Port uint16 // instead of the file's; 0: the file's
	Log  *slog.Logger
	// Reload makes the daemon read its file at once; it looks each Poll in any case.
	Reload <-chan os.Signal
	Poll   time.Duration // 0: a second
}

// daemon keeps a reflector equal to a file.
type daemon struct {
	opts     Options
	log      *slog.Logger
	settings Settings
	engine   *reflector.Reflector
	applied  bool // settings are in force
	memory   *Memory
	failed   string // why the file could not be used, to say so once
}

// Run runs until ctx ends. A file that cannot be used at the start is an error; later, the last good
// one stays in force.
func Run(ctx context.Context, opts Options) error {
	settings, err := opts.load()
	if err != nil {
		return err
	}
	if opts.Poll == 0 {
		opts.Poll = time.Second
	}
	d := &daemon{opts: opts, log: opts.Log, settings: settings}
	d.memory = &Memory{Dir: settings.StateDir}
	d.engine = reflector.New(reflector.Options{Restarted: d.remembered(time.Now())}, d.log)
	if err := d.engine.Apply(ctx, settings.Config); err != nil {
		_ = d.engine.Stop(context.WithoutCancel(ctx), true)
		return err
	}
	d.applied = true
	if settings.MetricsAddress != "" {
		stop, err := d.serve(ctx, settings.MetricsAddress)
		if err != nil {
			_ = d.engine.Stop(context.WithoutCancel(ctx), true)
			return err
		}
		defer stop()
	}
	d.log.Info("reflector runs", "as", settings.Config.ASN, "routerID", settings.Config.RouterID, "listen", fmt.Sprint(settings.Config.Listen))
	d.loop(ctx)
	return d.stop(ctx)
}

func (o Options) load() (Settings, error) {
	s, err := Load(o.File)
	if err != nil || o.Port == 0 {
		return s, err
	}
	for i, l := range s.Config.Listen {
		s.Config.Listen[i] = netip.AddrPortFrom(l.Addr(), o.Port)
	}
	return s, nil
}

func (d *daemon) loop(ctx context.Context) {
	poll := time.NewTicker(d.opts.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.opts.Reload:
			d.reload(ctx)
		case <-poll.C:
			d.reload(ctx)
			d.heartbeat(time.Now())
		case <-d.engine.Changed():
			d.remember()
		}
	}
}

// reload applies the file if it, or a password that it names, says something else than before.
func (d *daemon) reload(ctx context.Context) {
	next, err := d.opts.load()
	if err != nil {
		if err.Error() != d.failed {
			d.log.Error("file cannot be used: the last good one stays in force", "err", err)
		}
		d.failed = err.Error()
		return
	}
	if d.failed != "" {
		d.log.Info("file can be used again")
		d.failed = ""
	}
	if d.applied && reflect.DeepEqual(next, d.settings) {
		return
	}
	if next.MetricsAddress != d.settings.MetricsAddress {
		d.log.Warn("metricsAddress takes effect at the next start", "now", d.settings.MetricsAddress)
	}
	err = d.engine.Apply(ctx, next.Config)
	if err != nil && (d.applied || !reflect.DeepEqual(next, d.settings)) { // else it was said before
		d.log.Error("configuration is in force but in part", "err", err)
	}
	if err == nil {
		d.log.Info("configuration is in force", "clients", len(next.Config.Peers))
	}
	d.settings, d.applied = next, err == nil
}

// stop leaves without a word if clients keep their routes meanwhile: a stop is mostly half of a restart.
func (d *daemon) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	graceful := d.settings.Config.GracefulRestart.Enabled && d.settings.StateDir != ""
	d.remember()
	d.log.Info("reflector stops", "graceful", graceful)
	return d.engine.Stop(ctx, graceful)
}

// serve answers /metrics and /healthz.
func (d *daemon) serve(ctx context.Context, address string) (stop func(), err error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewCollector(d.engine), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		// The engine's one goroutine must answer for this to be written.
		if !d.engine.Snapshot().Running {
			http.Error(w, "not running", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metricsAddress: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are not served any more", "err", err)
		}
	}()
	return func() { _ = server.Close(); <-done }, nil
}

// remember writes who is connected. It is written at each change, since a crash gives no notice.
func (d *daemon) remember() {
	if err := d.memory.RememberKnown(d.engine); err != nil {
		d.log.Error("state cannot be written: after a crash routes may flap", "err", err)
	}
}

func (d *daemon) heartbeat(now time.Time) {
	if d.memory.Beat(now) {
		d.remember()
	}
}

// remembered returns who was connected a moment ago, if clients keep their routes over a restart.
func (d *daemon) remembered(now time.Time) []netip.Addr {
	gr := d.settings.Config.GracefulRestart
	if !gr.Enabled {
		return nil
	}
	who, err := d.memory.Remembered(now, gr.RestartTime)
	if err != nil {
		d.log.Warn("state cannot be read: routes may flap", "err", err)
	}
	return who
}
