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
	err := c.get(ctx, routesPath, q.values(), &out)
	return out, err
}

// Policies asks for the policies that the agent knows.
func (c *Client) Policies(ctx context.Context, q PolicyQuery) (NodePolicies, error) {
	var out NodePolicies
	err := c.get(ctx, policyPath, q.values(), &out)
	return out, err
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("ask the agent at %s: %w", c.socket, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, maxError))
		return fmt.Errorf("the agent at %s: %s: %s", c.socket, response.Status, strings.TrimSpace(string(said)))
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read the answer of the agent at %s: %w", c.socket, err)
	}
	return nil
}
