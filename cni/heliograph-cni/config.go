// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/heliograph-dev/heliograph/cni"
)

// config is the network configuration.
type config struct {
	types.PluginConf
	MTU      int    `json:"mtu,omitempty"`      // bytes; 0: the agent's
	Socket   string `json:"socket,omitempty"`   // path; empty: cni.SocketPath
	StateDir string `json:"stateDir,omitempty"` // path; empty: cni.StateDir
}

func readConfig(args *skel.CmdArgs) (*config, error) {
	c := &config{Socket: cni.SocketPath, StateDir: cni.StateDir}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cannot read the network configuration", err.Error())
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cannot read prevResult", err.Error())
	}
	return c, nil
}

// request is what every verb for one attachment asks.
func (c *config) request(v cni.Verb, args *skel.CmdArgs) cni.Request {
	return cni.Request{
		Verb: v, Network: c.Name, MTU: c.MTU, Pod: podOf(args.Args),
		Attachment: cni.Attachment{ContainerID: args.ContainerID, IfName: args.IfName},
	}
}

// podOf reads what Kubernetes' runtimes put into CNI_ARGS. Whatever else stands there is not for us.
func podOf(args string) (p cni.Pod) {
	for pair := range strings.SplitSeq(args, ";") {
		switch k, v, _ := strings.Cut(pair, "="); k {
		case "K8S_POD_NAMESPACE":
			p.Namespace = v
		case "K8S_POD_NAME":
			p.Name = v
		case "K8S_POD_UID":
			p.UID = v
		}
	}
	return p
}
