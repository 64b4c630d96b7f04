// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	execTimeout = 15 * time.Second
	execLimit   = 1 << 20 // bytes of output that are read, where little is expected
)

// execInPod runs a command in a container and returns what it printed, up to limit bytes. It speaks
// WebSocket, or SPDY where something on the way does not.
func execInPod(ctx context.Context, cfg *rest.Config, pod *corev1.Pod, container string, limit int, command ...string) ([]byte, error) {
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	url := set.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, clientgoscheme.ParameterCodec).URL()
	ws, err := remotecommand.NewWebSocketExecutor(cfg, "GET", url.String())
	if err != nil {
		return nil, fmt.Errorf("set up WebSocket: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(cfg, "POST", url)
	if err != nil {
		return nil, fmt.Errorf("set up SPDY: %w", err)
	}
	executor, err := remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}
	out, errOut := &limited{left: limit}, &limited{left: execLimit}
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: errOut}); err != nil {
		if said := strings.TrimSpace(errOut.kept.String()); said != "" {
			return nil, fmt.Errorf("%w: %s", err, said)
		}
		return nil, err
	}
	if out.left < 0 {
		return nil, fmt.Errorf("it prints more than %d bytes", limit)
	}
	return out.kept.Bytes(), nil
}

// limited keeps what fits, and drops the rest: what is not read would block the other side.
// The buffer is not embedded, for io.Copy would go round Write by its ReadFrom.
type limited struct {
	kept bytes.Buffer
	left int // below 0: something was dropped
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return len(p), nil
	}
	return l.kept.Write(p)
}
