// Lab runs a Kubernetes cluster on this machine, its nodes and a leaf-spine
// fabric of FRR routers in namespaces. `lab help` tells how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/cluster"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
)

const usage = `usage: lab COMMAND

  up [--cni=heliograph|none] [--nodes=N] [--image=FILE.tar]
                      start the lab, repair it, or bring a new image into it
  down                remove every trace of it
  status              what runs and what does not
  smoke               prove pod-to-pod and service traffic with pods on every node
  kubectl ARGS...     kubectl as the cluster's administrator
  exec HOST CMD...    run a command on a host: node1…, leaf1, leaf2, spine, control
  start ROUTER DAEMON start a daemon of a router again: zebra, bfdd or bgpd
  load FILE.tar       import an image archive on all nodes
  build [e2e.test]    build Kubernetes and the images into the cache, print its directory
`

type command func(ctx context.Context, lab *cluster.Lab, args []string) error

var commands = map[string]command{
	"up": up, "down": down, "status": status, "smoke": smoke,
	"start": startDaemon, "kubectl": kubectl, "exec": execute, "load": load, "build": build,
}

func main() {
	err := run(os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && os.Args[1] == "exec":
		os.Exit(exitCode(exit))
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// exitCode is the one that a shell would report.
func exitCode(e *exec.ExitError) int {
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return e.ExitCode()
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case host.HolderArg:
			return host.Hold(os.Stdin, os.Stdout)
		case cluster.ForwarderArg:
			return cluster.Forward(args[1])
		}
	}
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "--help"}, args[0]) {
		fmt.Print(usage)
		return nil
	}
	cmd, ok := commands[args[0]]
	if !ok {
		return fmt.Errorf("no command %q\n%s", args[0], usage)
	}
	repo, err := findRepo()
	if err != nil && slices.Contains([]string{"up", "build"}, args[0]) {
		return err
	}
	lab, err := cluster.Open(repo, os.Stderr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cmd(ctx, lab, args[1:])
}

// findRepo looks for the source tree above the binary, then above the working
// directory.
func findRepo() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the lab's binary: %w", err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	for _, start := range []string{filepath.Dir(exe), cwd} {
		for dir := start; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "hack", "lab", "kube", "go.mod")); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("find heliograph's source tree: run bin/lab of it, or run it there")
}

func up(ctx context.Context, lab *cluster.Lab, args []string) error {
	o := cluster.Options{}
	fs := flag.NewFlagSet("up", flag.ContinueOnError)
	fs.StringVar(&o.CNI, "cni", cluster.CNIHeliograph, "the pod network: heliograph or none")
	fs.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	fs.StringVar(&o.Image, "image", "", "heliograph's image (default bin/heliograph.tar)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.CNI != cluster.CNIHeliograph && o.CNI != cluster.CNINone {
		return fmt.Errorf("--cni=%s: want heliograph or none", o.CNI)
	}
	if err := errors.Join(cluster.Preflight(ctx), cluster.PreflightBuild()); err != nil {
		return err
	}
	unlock, err := lab.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := lab.Up(ctx, o); err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, lab.Advice())
	return nil
}

func down(ctx context.Context, lab *cluster.Lab, _ []string) error {
	unlock, err := lab.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return lab.Down(ctx)
}

func status(ctx context.Context, lab *cluster.Lab, _ []string) error {
	return lab.Status(ctx, os.Stdout)
}

func smoke(ctx context.Context, lab *cluster.Lab, _ []string) error {
	return lab.Smoke(ctx)
}

// kubectl becomes kubectl, so that terminals, signals and exit codes are its own.
func kubectl(_ context.Context, lab *cluster.Lab, args []string) error {
	if err := lab.Running(); err != nil {
		return err
	}
	path, argv, env := lab.KubectlCommand(args...)
	return fmt.Errorf("run kubectl: %w", syscall.Exec(path, argv, env))
}

func execute(ctx context.Context, lab *cluster.Lab, args []string) error {
	if len(args) > 1 && args[1] == "--" {
		args = slices.Delete(slices.Clone(args), 1, 2)
	}
	if len(args) < 2 {
		return errors.New("exec: want a host and a command")
	}
	h, err := lab.Host(args[0])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[1], args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	_, _, env := lab.KubectlCommand()
	cmd.Env = append(env, "KUBECONFIG="+cluster.InsideKubeconfig, "PATH="+lab.Cache.Bin()+":"+os.Getenv("PATH"))
	// A terminal sends its interrupt to the command as well; a signal to this
	// process alone is passed on. The command decides what it means.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Dir = dirInside(h)
	return h.Do(cmd, host.All...)
}

// dirInside is the working directory, if the host sees one of that name.
func dirInside(h host.Host) string {
	cwd, err := os.Getwd()
	if err != nil {
		return "/"
	}
	if _, err := os.Stat(filepath.Join("/proc", fmt.Sprint(h.Pid()), "root", cwd)); err != nil {
		return "/"
	}
	return cwd
}

func startDaemon(ctx context.Context, lab *cluster.Lab, args []string) error {
	if len(args) != 2 {
		return errors.New("start: want a router and a daemon")
	}
	return lab.StartDaemon(ctx, args[0], args[1])
}

func load(ctx context.Context, lab *cluster.Lab, args []string) error {
	if len(args) != 1 {
		return errors.New("load: want one image archive")
	}
	return lab.Load(ctx, args[0])
}

func build(ctx context.Context, lab *cluster.Lab, args []string) error {
	if err := cluster.PreflightBuild(); err != nil {
		return err
	}
	if err := lab.Cache.Build(ctx, args...); err != nil {
		return err
	}
	fmt.Println(lab.Cache.Dir)
	return nil
}
