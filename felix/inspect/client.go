// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

const (
	maxAnswer = 128 << 20 // bytes: more than the longest answer
	maxError  = 1 << 10
)

// Client asks the agent of this node.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the server at a socket; default SocketPath.
func NewClient(socket string) *Client {
	socket = cmp.Or(socket, SocketPath)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Routes asks for the routes to some prefixes.
func (c *Client) Routes(ctx context.Context, q Query) (Routes, error) {
	var out Routes
	u := url.URL{Scheme: "http", Host: "agent", Path: routesPath, RawQuery: q.values().Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return out, err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return out, fmt.Errorf("ask the agent at %s: %w", c.socket, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, maxError))
		return out, fmt.Errorf("the agent at %s: %s: %s", c.socket, response.Status, strings.TrimSpace(string(said)))
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("read the answer of the agent at %s: %w", c.socket, err)
	}
	return out, nil
}
