// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// channels of the protocol, by their numbers.
const (
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
)

func TestExec(t *testing.T) {
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string
		wantErr string
	}{
		"WebSocket":           {handler: func(w http.ResponseWriter, r *http.Request) { serveWebSocket(t, w, r, "{}", "") }, want: "{}"},
		"WebSocket, it fails": {handler: func(w http.ResponseWriter, r *http.Request) { serveWebSocket(t, w, r, "", "Error: explain: no") }, wantErr: "Error: explain: no"},
		"SPDY alone":          {handler: func(w http.ResponseWriter, r *http.Request) { serveSPDY(t, w, r, "{}") }, want: "{}"},
		"not permitted":       {handler: forbid, wantErr: "pods/exec is forbidden"},
		"more than expected": {handler: func(w http.ResponseWriter, r *http.Request) {
			serveWebSocket(t, w, r, strings.Repeat("x", execLimit+1), "")
		}, wantErr: "it prints more than"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(checkRequest(t, tt.handler))
			defer server.Close()
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "heliograph-system", Name: "heliograph-agent-x"}}
			got, err := execInPod(t.Context(), &rest.Config{Host: server.URL}, pod, "agent", execLimit, "/heliograph", kernelRoute, "10.244.2.7")
			switch {
			case tt.wantErr == "" && err != nil:
				t.Fatal(err)
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Fatalf("error = %v, %d bytes; want %q in it", err, len(got), tt.wantErr)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func checkRequest(t *testing.T, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/api/v1/namespaces/heliograph-system/pods/heliograph-agent-x/exec" || q.Get("container") != "agent" ||
			!slices.Equal(q["command"], []string{"/heliograph", kernelRoute, "10.244.2.7"}) {
			t.Errorf("request = %s", r.URL)
		}
		next(w, r)
	}
}

func forbid(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonForbidden,
		Code: http.StatusForbidden, Message: "pods/exec is forbidden",
	})
}

// result is what the server says of the command at the end.
func result(failed bool) []byte {
	s := metav1.Status{Status: metav1.StatusSuccess}
	if failed {
		s = metav1.Status{Status: metav1.StatusFailure, Message: "command terminated with exit code 1"}
	}
	b, _ := json.Marshal(s)
	return b
}

func serveWebSocket(t *testing.T, w http.ResponseWriter, r *http.Request, stdout, stderr string) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{"v5.channel.k8s.io": {
		Binary:   true,
		Channels: []wsstream.ChannelType{wsstream.IgnoreChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.IgnoreChannel},
	}})
	_, streams, err := conn.Open(w, r)
	if err != nil {
		t.Errorf("upgrade to WebSocket: %v", err)
		return
	}
	defer func() { _ = conn.Close() }()
	for _, say := range []struct {
		channel int
		text    string
	}{{channelStdout, stdout}, {channelStderr, stderr}, {channelError, string(result(stderr != ""))}} {
		if say.text != "" {
			_, _ = io.WriteString(streams[say.channel], say.text)
		}
	}
}

// serveSPDY knows no WebSocket, as servers before Kubernetes 1.30.
func serveSPDY(t *testing.T, w http.ResponseWriter, r *http.Request, stdout string) {
	if wsstream.IsWebSocketRequest(r) {
		http.Error(w, "unable to upgrade: unknown protocol", http.StatusBadRequest)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		t.Errorf("negotiate: %v", err)
		return
	}
	streams := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	byType := map[string]httpstream.Stream{}
	for range cap(streams) {
		s := <-streams
		byType[s.Headers().Get(corev1.StreamType)] = s
	}
	_, _ = io.WriteString(byType[corev1.StreamTypeStdout], stdout)
	_, _ = byType[corev1.StreamTypeError].Write(result(false))
	for _, s := range byType {
		_ = s.Close()
	}
	<-conn.CloseChan()
}
