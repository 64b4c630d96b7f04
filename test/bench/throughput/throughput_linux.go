// SPDX-License-Identifier: Apache-2.0

// Package throughput measures TCP between two pods on two nodes, all namespaces of one machine: through
// heliograph's interfaces, filter, nexthop objects and tunnels, beside plain veth pairs and routes.
package throughput

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/capability"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	rounds  = 5
	seconds = 2
	// vmEnv says that this is the kernel of hack/vm, which sets it.
	vmEnv    = "HELIOGRAPH_VM"
	patience = 30 * time.Second
	// noise is by how much two runs of the same may differ on a shared machine.
	noise = 0.1
)

var familyNames = [2]string{"IPv4", "IPv6"}

// key is what is measured: a method, path.Methods for none of ours, and a family.
type key struct {
	method path.Method
	family int
}

// Measure runs it with the methods that the kernel has, in about a minute and a half. It must run in
// namespaces of its own.
func Measure(ctx context.Context) ([]table.Table, error) {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /run: %w", err)
	}
	can, err := capability.Probe(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	methods, capabilities := []path.Method{path.Native, path.VXLAN}, path.CanVXLAN
	if can.IPIP {
		methods, capabilities = []path.Method{path.Native, path.IPIP, path.VXLAN}, capabilities|path.CanIPIP
	}
	plain, err := newPlain()
	if err != nil {
		return nil, err
	}
	o, err := newOurs(capabilities)
	if err != nil {
		return nil, err
	}
	measured := map[key][]float64{}
	for range rounds {
		if err := round(ctx, plain, o, methods, measured); err != nil {
			return nil, err
		}
	}
	t, err := result(methods, measured)
	return []table.Table{t}, err
}

// round measures everything once: what goes plainly, then each method.
func round(ctx context.Context, plain network, o *ours, methods []path.Method, measured map[key][]float64) error {
	for family := range 2 {
		for _, m := range append([]path.Method{path.Methods}, methods...) {
			if m == path.IPIP && family == 1 {
				continue
			}
			n := plain
			if m != path.Methods {
				n = o.network
				if err := o.use(ctx, m); err != nil {
					return err
				}
			}
			rate, err := n.iperf(ctx, family)
			if err != nil {
				return fmt.Errorf("%s by %s: %w", familyNames[family], m, err)
			}
			k := key{m, family}
			measured[k] = append(measured[k], rate)
		}
	}
	return nil
}

// iperf measures from the first pod to the second, in bits per second.
func (n network) iperf(ctx context.Context, family int) (float64, error) {
	for i := range 2 { // what a tunnel's MTU has taught the pods
		if err := ip("-n "+n.pod(i)+" route flush cache", "-6 -n "+n.pod(i)+" route flush cache"); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	server := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+n.pod(1), "iperf3", "-s", "-1", "--forceflush")
	out, err := server.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := server.Start(); err != nil {
		return 0, fmt.Errorf("start iperf3: %w", err)
	}
	defer func() {
		cancel()
		_ = server.Wait()
	}()
	if err := awaitLine(out, "Server listening"); err != nil {
		return 0, err
	}
	return ask(ctx, n.pod(0), n.pods[1][family])
}

// awaitLine reads until a line has the text, and goes on reading what follows.
func awaitLine(r io.Reader, text string) error {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return nil
		}
	}
	return errors.New("iperf3 does not listen")
}

func ask(ctx context.Context, namespace string, server netip.Addr) (float64, error) {
	client := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+namespace, "iperf3", "-c", server.String(), "-t", strconv.Itoa(seconds), "-J")
	text, err := client.Output()
	if err != nil {
		return 0, fmt.Errorf("iperf3 to %s: %w: %s", server, err, text)
	}
	var answer struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("iperf3 to %s: %w", server, err)
	}
	if answer.End.Received.Rate == 0 {
		return 0, fmt.Errorf("iperf3 to %s has measured nothing: %s", server, text)
	}
	return answer.End.Received.Rate, nil
}

func result(methods []path.Method, measured map[key][]float64) (table.Table, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return table.Table{}, err
	}
	t := table.Table{
		Title: "TCP from pod to pod, Linux " + strings.TrimSpace(string(release)) + map[bool]string{true: ", emulated"}[emulated()],
		Note: fmt.Sprintf("One iperf3 connection of %d s between two nodes on a wire, all namespaces of one machine. Beside: the same with plain veth pairs and routes, and no object of heliograph. Medians, of the ratios too, of %d interleaved rounds.",
			seconds, rounds),
	}
	for family := range 2 {
		raw := measured[key{path.Methods, family}]
		for _, m := range methods {
			rates := measured[key{m, family}]
			if len(rates) == 0 {
				continue
			}
			ratios := make([]float64, len(rates))
			for i := range rates {
				ratios[i] = rates[i] / raw[i]
			}
			row := table.Row{
				What: m.String() + ", " + familyNames[family], Ours: gigabits(median(rates)), Beside: "raw veth-routed", Theirs: gigabits(median(raw)),
				Ratio: median(ratios),
			}
			if m == path.Native && !emulated() {
				row.Target = table.AtLeast(1 - noise)
			}
			t.Rows = append(t.Rows, row)
		}
	}
	return t, nil
}

// emulated says that the CPU is: what TCP makes of a machine a hundred times slower is no target.
func emulated() bool { return os.Getenv(vmEnv) == "1" }

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

func gigabits(rate float64) string { return fmt.Sprintf("%.2f Gbit/s", rate/1e9) }
