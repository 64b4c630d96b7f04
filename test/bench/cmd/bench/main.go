// SPDX-License-Identifier: Apache-2.0

// Command bench measures heliograph beside its limits and its peers, and writes Markdown tables of
// ratios with both sides' figures:
//
//	bench [-o FILE] [-cpuprofile FILE] [-sizes N,...] [-rounds N] [-duration D] NAME...
//
// It runs in namespaces of its own, but for pods, which is alone and needs the lab to be up. It exits with 1 if a target is missed.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/test/bench/cni"
	"github.com/heliograph-dev/heliograph/test/bench/paths"
	"github.com/heliograph-dev/heliograph/test/bench/pods"
	"github.com/heliograph-dev/heliograph/test/bench/policy"
	"github.com/heliograph-dev/heliograph/test/bench/reflector"
	"github.com/heliograph-dev/heliograph/test/bench/routes"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
	"github.com/heliograph-dev/heliograph/test/bench/throughput"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	out := flag.String("o", "", "write the tables to this `file` too")
	sizes := flag.String("sizes", "200,500,1000,2000", "how many clients reflectors have")
	rounds := flag.Int("rounds", 3, "how often reflectors are measured")
	duration := flag.Duration("duration", 10*time.Minute, "how long reflector-hostile attacks")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this `file`, for go tool pprof")
	flag.Parse()
	names := flag.Args()
	if !slices.Contains(names, "pods") { // which needs the lab, not a sandbox
		enter := sandbox.Enter
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "policy") }) && os.Geteuid() == 0 { // 10,000 policies are more than others may send at once
			enter = sandbox.EnterWithRights
		}
		inside, err := enter()
		if !inside || err != nil {
			return err
		}
	}
	if len(names) == 0 {
		names = []string{"routes", "cni"}
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var doc bytes.Buffer
	missed := 0
	for _, name := range names {
		tables, err := measure(context.Background(), name, *sizes, *rounds, *duration)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, t := range tables {
			missed += t.Missed()
			if err := t.Write(&doc); err != nil {
				return err
			}
		}
	}
	fmt.Print(doc.String())
	if *out != "" {
		if err := os.WriteFile(*out, doc.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d targets missed", missed)
	}
	return nil
}

func measure(ctx context.Context, name, sizes string, rounds int, duration time.Duration) ([]table.Table, error) {
	switch name {
	case "cni":
		return cni.Measure(ctx)
	case "paths":
		return paths.Measure(ctx)
	case "pods":
		return pods.Measure(ctx)
	case "policy":
		return policy.Measure(ctx)
	case "policy-traffic":
		return policy.MeasureTraffic(ctx)
	case "reflector":
		o := reflector.Options{Rounds: rounds}
		for _, n := range strings.Split(sizes, ",") {
			size, err := strconv.Atoi(n)
			if err != nil {
				return nil, fmt.Errorf("-sizes: %w", err)
			}
			o.Sizes = append(o.Sizes, size)
		}
		return reflector.Measure(ctx, o)
	case "reflector-hostile":
		return reflector.MeasureHostile(ctx, reflector.HostileOptions{Binary: "../../bin/heliograph-reflector", Clients: 198, Duration: duration})
	case "routes":
		return routes.Measure(ctx)
	case "throughput":
		return throughput.Measure(ctx)
	}
	return nil, fmt.Errorf("no such benchmark (there are: cni, paths, pods, policy, policy-traffic, reflector, reflector-hostile, routes, throughput)")
}
