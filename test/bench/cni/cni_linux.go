// SPDX-License-Identifier: Apache-2.0

// Package cni measures how long a pod waits for its network: the real plugin with the real allocator,
// interfaces and drivers behind it, beside Debian's reference plugins ptp and host-local, both run as
// a runtime runs them and in turns.
package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	serialRounds   = 100
	parallelRounds = 20
	atOnce         = 8
	referenceDir   = "/usr/lib/cni"
)

// Measure runs the benchmark. It needs to be inside of sandbox.Enter, and the Go tool.
func Measure(ctx context.Context) ([]table.Table, error) {
	if _, err := os.Stat(filepath.Join(referenceDir, "ptp")); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the reference plugins are missing (package containernetworking-plugins): %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /run: %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "helbench") // on a disk, not in memory: syncs count
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	agent, err := startAgent(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer agent.stop()
	sides := []*plugin{
		{name: "heliograph", dir: dir, conf: agent.conf()},
		{name: "ptp, IPv4 only", dir: referenceDir, conf: ptpConf(dir, "ptp4", `[{"subnet":"10.88.0.0/16"}]`)},
		{name: "ptp, dual-stack", dir: referenceDir, conf: ptpConf(dir, "ptp46", `[{"subnet":"10.89.0.0/16"}],[{"subnet":"fd00:89::/64"}]`), every: 10},
	}
	for _, p := range sides {
		if err := p.prepare(); err != nil {
			return nil, err
		}
	}
	serial, err := measure(sides, serialRounds, 1)
	if err != nil {
		return nil, err
	}
	parallel, err := measure(sides, parallelRounds, atOnce)
	if err != nil {
		return nil, err
	}
	note := "From the start of the plugin's process to its end. heliograph: dual-stack, addresses synced to disk, routes and nft sets programmed before ADD answers. host-local syncs nothing, ptp programs no policy, and with IPv6 it waits for duplicate address detection."
	return []table.Table{
		rows("CNI, one pod after the other", note, sides, serial),
		rows(fmt.Sprintf("CNI, %d pods at once", atOnce), "Per pod.", sides, parallel),
	}, nil
}

func ptpConf(dir, name, ranges string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"type":"ptp","ipam":{"type":"host-local","dataDir":%q,"ranges":[%s],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		name, filepath.Join(dir, name), ranges)
}

// plugin is one side of the comparison.
type plugin struct {
	name, dir, conf string
	every           int // takes part in every nth round only, since it takes seconds; 0: in all
	binary          string
	ids             int
}

// prepare makes a namespace for each pod that is there at once.
func (p *plugin) prepare() error {
	p.binary = filepath.Join(p.dir, "heliograph")
	if p.dir == referenceDir {
		p.binary = filepath.Join(p.dir, "ptp")
	}
	for i := range atOnce {
		if err := sandbox.Run("ip", "netns", "add", p.namespace(i)); err != nil {
			return err
		}
	}
	return nil
}

func (p *plugin) namespace(i int) string {
	return fmt.Sprintf("%x-%d", p.name, i)
}

// run runs the plugin once for a pod.
func (p *plugin) run(verb string, pod, id int) (time.Duration, error) {
	cmd := exec.Command(p.binary)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, fmt.Sprintf("CNI_CONTAINERID=bench-%d-%d", pod, id), "CNI_IFNAME=eth0",
		"CNI_NETNS=/run/netns/" + p.namespace(pod), "CNI_PATH=" + p.dir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench", "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin = bytes.NewReader([]byte(p.conf))
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("%s %s: %w: %s", p.name, verb, err, out)
	}
	return took, nil
}

// all runs a verb for the first n pods at once.
func (p *plugin) all(verb string, n, id int) ([]time.Duration, error) {
	took, errs := make([]time.Duration, n), make([]error, n)
	var wg sync.WaitGroup
	for pod := range n {
		wg.Go(func() { took[pod], errs[pod] = p.run(verb, pod, id) })
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

// timings are what was measured of one side.
type timings struct{ add, del []time.Duration }

// measure lets the sides take turns.
func measure(sides []*plugin, rounds, n int) ([]timings, error) {
	all := make([]timings, len(sides))
	for round := range rounds + 2 { // the first two warm up
		for i, p := range sides {
			if p.every > 0 && round%p.every != 0 {
				continue
			}
			p.ids++
			add, err := p.all("ADD", n, p.ids)
			if err != nil {
				return nil, err
			}
			del, err := p.all("DEL", n, p.ids)
			if err != nil {
				return nil, err
			}
			if round >= 2 || p.every > 0 {
				all[i].add = append(all[i].add, add...)
				all[i].del = append(all[i].del, del...)
			}
		}
	}
	return all, nil
}

func rows(title, note string, sides []*plugin, measured []timings) table.Table {
	t := table.Table{Title: title, Note: note}
	ours := measured[0]
	for i, theirs := range measured[1:] {
		for _, q := range []struct {
			name string
			at   float64
		}{{"p50", .5}, {"p99", .99}} {
			for _, v := range []struct {
				name         string
				ours, theirs []time.Duration
			}{{"ADD", ours.add, theirs.add}, {"DEL", ours.del, theirs.del}} {
				a, b := quantile(v.ours, q.at), quantile(v.theirs, q.at)
				row := table.Row{
					What: v.name + " " + q.name, Ours: table.Millis(a), Beside: sides[i+1].name, Theirs: table.Millis(b),
					Ratio: a.Seconds() / b.Seconds(),
				}
				if q.at == .5 { // p99 of so few is for the reader
					row.Target = table.AtMost(1)
				}
				t.Rows = append(t.Rows, row)
			}
		}
	}
	return t
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
