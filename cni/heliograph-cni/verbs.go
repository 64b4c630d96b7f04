// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/heliograph-dev/heliograph/cni"
)

// Timeouts, each below what runtimes give a plugin (kubelet: two minutes and more) and above what
// the agent gives itself, so that its reasons are heard.
const (
	addTimeout    = 45 * time.Second
	delTimeout    = 25 * time.Second
	checkTimeout  = 25 * time.Second
	statusTimeout = 5 * time.Second
	gcTimeout     = 60 * time.Second
	// restartTime is how long an ADD waits for an agent that is just being replaced.
	restartTime = 2 * time.Second
)

// add connects a pod (CNI specification 1.1, ADD).
func add(args *skel.CmdArgs) error {
	conf, err := readConfig(args)
	if err != nil {
		return err
	}
	socket, err := openSocketIn(args.Netns, prepareNamespace)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "cannot use the pod's network namespace", err.Error())
	}
	defer func() { _ = socket.Close() }()
	response, err := ask(conf, conf.request(cni.Add, args), addTimeout, restartTime, socket)
	if err != nil {
		return answerError(conf, err)
	}
	result, err := conf.result(args, response)
	if err != nil {
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// del disconnects a pod, or promises it (CNI specification 1.1, DEL).
func del(args *skel.CmdArgs) error {
	conf, err := readConfig(args)
	if err != nil {
		return err
	}
	request := conf.request(cni.Del, args)
	_, err = ask(conf, request, delTimeout, 0)
	var answered *cni.Error
	if err == nil || errors.As(err, &answered) {
		return answerError(conf, err)
	}
	promised := cni.Tombstones{Dir: filepath.Join(conf.StateDir, cni.TombstoneDir)}
	if promiseErr := promised.Add(request.Attachment); promiseErr != nil {
		return answerError(conf, errors.Join(err, fmt.Errorf("and the DEL cannot be left for it: %w", promiseErr)))
	}
	return nil
}

// check compares a pod's network with prevResult and with what it should be (CNI specification 1.1,
// CHECK).
func check(args *skel.CmdArgs) error {
	conf, err := readConfig(args)
	if err != nil {
		return err
	}
	request := conf.request(cni.Check, args)
	if request.Previous, err = conf.previous(args); err != nil {
		return err
	}
	socket, err := openSocketIn(args.Netns, nil)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, "cannot use the pod's network namespace", err.Error())
	}
	defer func() { _ = socket.Close() }()
	_, err = ask(conf, request, checkTimeout, 0, socket)
	return answerError(conf, err)
}

// status says whether an ADD could succeed (CNI specification 1.1, STATUS).
func status(args *skel.CmdArgs) error {
	conf, err := readConfig(args)
	if err != nil {
		return err
	}
	_, err = ask(conf, cni.Request{Verb: cni.Status, Network: conf.Name}, statusTimeout, 0)
	var answered *cni.Error
	if err != nil && !errors.As(err, &answered) {
		// Pods that run do not need the agent, so this is not 51.
		return types.NewError(cni.CodeNotAvailable, agentAway(conf), err.Error())
	}
	return answerError(conf, err)
}

// gc disconnects all pods but those that the runtime names (CNI specification 1.1, GC).
func gc(args *skel.CmdArgs) error {
	conf, err := readConfig(args)
	if err != nil {
		return err
	}
	request := cni.Request{Verb: cni.GC, Network: conf.Name}
	for _, a := range conf.ValidAttachments {
		request.Valid = append(request.Valid, cni.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	_, err = ask(conf, request, gcTimeout, 0)
	return answerError(conf, err)
}

// answerError turns an error of the conversation into one for the runtime: the agent's own as it
// is, or that there is no agent.
func answerError(conf *config, err error) error {
	if err == nil {
		return nil
	}
	var answered *cni.Error
	if errors.As(err, &answered) {
		return types.NewError(answered.Code, answered.Msg, answered.Details)
	}
	return types.NewError(types.ErrTryAgainLater, "try again later: "+agentAway(conf), err.Error())
}

func agentAway(conf *config) string {
	return "the heliograph agent is not running on this node (socket " + conf.Socket + ")"
}

// result is what ADD prints: ours after that of plugins before us, if there were any.
func (c *config) result(args *skel.CmdArgs, r cni.Response) (*types100.Result, error) {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if c.PrevResult != nil {
		previous, err := types100.NewResultFromResult(c.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "cannot use prevResult", err.Error())
		}
		result = previous
	}
	mtu := func(i cni.Interface) int {
		if c.CNIVersion != "1.1.0" { // the field is new in 1.1
			return 0
		}
		return i.MTU
	}
	result.Interfaces = append(result.Interfaces,
		&types100.Interface{Name: r.HostInterface.Name, Mac: r.HostInterface.MAC, Mtu: mtu(r.HostInterface)},
		&types100.Interface{Name: r.PodInterface.Name, Mac: r.PodInterface.MAC, Mtu: mtu(r.PodInterface), Sandbox: args.Netns})
	pod := len(result.Interfaces) - 1
	for i, p := range r.Addresses {
		ip := &types100.IPConfig{Interface: types100.Int(pod), Address: ipNet(p)}
		if i < len(r.Gateways) {
			ip.Gateway = r.Gateways[i].AsSlice()
			result.Routes = append(result.Routes, &types.Route{Dst: ipNet(defaultOf(p.Addr())), GW: ip.Gateway})
		}
		result.IPs = append(result.IPs, ip)
	}
	return result, nil
}

// previous are the addresses that prevResult says our interface has.
func (c *config) previous(args *skel.CmdArgs) ([]netip.Prefix, error) {
	if c.PrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK needs the result of ADD")
	}
	result, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cannot use prevResult", err.Error())
	}
	var previous []netip.Prefix
	for _, ip := range result.IPs {
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(result.Interfaces) {
			continue
		}
		if i := result.Interfaces[*ip.Interface]; i.Name != args.IfName || i.Sandbox == "" {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			bits, _ := ip.Address.Mask.Size()
			previous = append(previous, netip.PrefixFrom(a.Unmap(), bits))
		}
	}
	if len(previous) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult has no address on "+args.IfName, "")
	}
	return previous, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
