// SPDX-License-Identifier: Apache-2.0

// Command gobgprr is stock GoBGP as a route reflector for clients from 127.1.0.0/16: what the
// benchmarks compare with.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

func main() {
	port := flag.Int("port", 1790, "port to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, int32(*port)); err != nil {
		fmt.Fprintln(os.Stderr, "gobgprr:", err)
		os.Exit(1)
	}
	<-ctx.Done()
}

func run(ctx context.Context, port int32) error {
	s := server.NewBgpServer()
	go s.Serve()
	global := &api.Global{Asn: 65000, RouterId: "127.0.0.1", ListenPort: port, ListenAddresses: []string{"127.0.0.1"}}
	if err := s.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return err
	}
	var families []*api.AfiSafi
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		families = append(families, &api.AfiSafi{Config: &api.AfiSafiConfig{Enabled: true, Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}}})
	}
	group := &api.PeerGroup{
		Conf:           &api.PeerGroupConf{PeerGroupName: "clients", PeerAsn: 65000},
		RouteReflector: &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: "127.0.0.1"},
		Transport:      &api.Transport{PassiveMode: true},
		Timers:         &api.Timers{Config: &api.TimersConfig{HoldTime: 90, KeepaliveInterval: 30}},
		AfiSafis:       families,
	}
	if err := s.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: group}); err != nil {
		return err
	}
	return s.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
		DynamicNeighbor: &api.DynamicNeighbor{Prefix: "127.1.0.0/16", PeerGroup: "clients"},
	})
}
