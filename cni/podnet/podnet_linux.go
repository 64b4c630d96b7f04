// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/cni"
)

// ErrPodInterfaceExists says that the pod has an interface of that name already (CNI specification
// 1.1, ADD: "the CNI plugin MUST return with an error").
var ErrPodInterfaceExists = errors.New("an interface of that name exists in the pod already")

// ErrSameNamespace says that the socket is of the node's own namespace.
var ErrSameNamespace = errors.New("the pod's network namespace is the node's own")

// Net makes interfaces of pods on this node. It has no state beyond the node's namespace, and may be
// used by many goroutines at once.
type Net struct {
	namespace *os.File // where the node's ends go
}

// New returns a Net for the network namespace of the calling thread.
func New() (*Net, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return &Net{namespace: f}, nil
}

// Close ends the use of the Net. The interfaces stay.
func (n *Net) Close() error { return n.namespace.Close() }

// Create makes the pair, with both ends up and the pod's end configured, through a netlink socket of
// the pod's namespace. When it fails, nothing is left. The node routes nothing to the pod yet, and
// its filter must drop what comes from a "hel…" device that it does not know.
//
// Errors: ErrPodInterfaceExists, ErrSameNamespace, or the kernel's, wrapped with what was tried.
func (n *Net) Create(podSocket *os.File, i Interface) (Ends, error) {
	pod, host, err := n.sockets(podSocket)
	if err != nil {
		return Ends{}, err
	}
	defer host.close()
	device := HostDevice(i.Attachment)
	answers, err := pod.exchange(createPair(i, device, int(n.namespace.Fd())), getLink(i.Attachment.IfName))
	if err != nil {
		if errors.Is(err, unix.EEXIST) && len(answers) == 2 && len(answers[1]) == 1 {
			return Ends{}, fmt.Errorf("create %s: %w", i.Attachment.IfName, ErrPodInterfaceExists)
		}
		return Ends{}, err // the kernel has undone its half of the work
	}
	inside, err := configure(pod, host, i, answers[1])
	if err != nil {
		_, deleteErr := host.exchange(deleteLink(device))
		return Ends{}, errors.Join(err, ignoreGone(deleteErr))
	}
	hostMAC := HostMAC
	return Ends{
		Host: cni.Interface{Name: device, MAC: net.HardwareAddr(hostMAC[:]).String(), MTU: inside.mtu},
		Pod:  cni.Interface{Name: inside.name, MAC: net.HardwareAddr(inside.mac).String(), MTU: inside.mtu},
	}, nil
}

// configure completes a fresh pair: the node's end first, so that the pod's has a carrier when its
// routes are made.
func configure(pod, host *socket, i Interface, answer [][]byte) (link, error) {
	if len(answer) != 1 {
		return link{}, fmt.Errorf("get link %s: %d answers", i.Attachment.IfName, len(answer))
	}
	inside, err := parseLink(answer[0])
	if err != nil {
		return link{}, fmt.Errorf("get link %s: %w", i.Attachment.IfName, err)
	}
	hostSide := []request{setUp(inside.peer, i.alias())}
	var podSide []request
	for _, a := range i.Addresses {
		if !a.IsValid() {
			continue
		}
		hostSide = append(hostSide, addNeighbour(inside.peer, a, podMAC(i.Attachment)))
		podSide = append(podSide, addAddress(inside.index, a), addNeighbour(inside.index, gateway(a), HostMAC))
		if a.Is4() {
			podSide = append(podSide, addLinkRoute(inside.index, Gateway4)) // fe80::/64 is on the link anyway
		}
		podSide = append(podSide, addDefault(inside.index, gateway(a)))
	}
	if _, err := host.exchange(hostSide...); err != nil {
		return inside, err
	}
	if _, err := pod.exchange(podSide...); err != nil {
		return inside, explain(err)
	}
	return inside, nil
}

// explain adds what a person can do about an error of the pod's side.
func explain(err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (is net.ipv6.conf.*.disable_ipv6 set in the pod's namespace?)", err)
	}
	return err
}

// Delete deletes the pair of a device of the node. Deleting what is gone is success.
func (n *Net) Delete(device string) error {
	host, err := openSocket()
	if err != nil {
		return err
	}
	defer host.close()
	_, err = host.exchange(deleteLink(device))
	return ignoreGone(err)
}

// Check compares an interface with what it should be: both ends exist, are up and belong together,
// the pod has its addresses, default routes and neighbour entries of the gateways, and the node
// would send what is for the pod to it. It tolerates what others added. The error names every
// difference.
func (n *Net) Check(podSocket *os.File, i Interface) error {
	pod, host, err := n.sockets(podSocket)
	if err != nil {
		return err
	}
	defer host.close()
	inside, err := oneLink(pod, i.Attachment.IfName)
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	device := HostDevice(i.Attachment)
	outside, err := oneLink(host, device)
	if err != nil {
		return fmt.Errorf("on the node: %w", err)
	}
	var errs []error
	if !inside.up {
		errs = append(errs, fmt.Errorf("in the pod: %s is down", i.Attachment.IfName))
	}
	if !outside.up {
		errs = append(errs, fmt.Errorf("on the node: %s is down", device))
	}
	if inside.peer != outside.index || outside.peer != inside.index {
		return errors.Join(append(errs, fmt.Errorf("%s and %s are not a pair", i.Attachment.IfName, device))...)
	}
	for _, a := range i.Addresses {
		if a.IsValid() {
			errs = append(errs, checkPod(pod, inside.index, a), checkNode(host, outside, a))
		}
	}
	return errors.Join(errs...)
}

// checkPod checks, in the pod, all that belongs to one of its addresses.
func checkPod(pod *socket, index int32, a netip.Addr) error {
	answers, err := pod.exchange(dumpAddresses(index))
	var dumps [3][][]byte
	if err == nil {
		dumps[0] = answers[0]
		// A socket runs one dump at a time.
		if answers, err = pod.exchange(dumpRoutes(afOf(a))); err == nil {
			dumps[1] = answers[0]
			if answers, err = pod.exchange(dumpNeighbours(index)); err == nil {
				dumps[2] = answers[0]
			}
		}
	}
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	var errs []error
	if !slices.ContainsFunc(dumps[0], func(b []byte) bool {
		got, dev, err := parseAddress(b)
		return err == nil && dev == index && got == a
	}) {
		errs = append(errs, fmt.Errorf("in the pod: address %s is missing", a))
	}
	gw := gateway(a)
	if !slices.ContainsFunc(dumps[1], func(b []byte) bool {
		r, err := parseRoute(b)
		return err == nil && r == route{isDefault: true, via: gw, index: index}
	}) {
		errs = append(errs, fmt.Errorf("in the pod: default route via %s is missing", gw))
	}
	if !slices.ContainsFunc(dumps[2], func(b []byte) bool {
		got, mac, dev, permanent, err := parseNeighbour(b)
		return err == nil && dev == index && got == gw && mac == HostMAC && permanent
	}) {
		errs = append(errs, fmt.Errorf("in the pod: neighbour entry of the gateway %s is missing", gw))
	}
	return errors.Join(errs...)
}

// checkNode checks that the node sends what is for the address to the device.
func checkNode(host *socket, device link, a netip.Addr) error {
	answers, err := host.exchange(lookup(a))
	if err != nil && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
		return fmt.Errorf("on the node: %w", err)
	}
	for _, b := range answers[0] {
		if r, err := parseRoute(b); err == nil && r.index == device.index && !r.via.IsValid() {
			return nil
		}
	}
	return fmt.Errorf("on the node: no route to %s on %s", a, device.name)
}

// List returns the node's devices that are of attachments, by their aliases.
func (n *Net) List() ([]Found, error) {
	host, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer host.close()
	answers, err := host.exchange(dumpLinks())
	if err != nil {
		return nil, err
	}
	var found []Found
	for _, b := range answers[0] {
		l, err := parseLink(b)
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		if f, ok := parseAlias(l.name, l.alias); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// sockets adopts the pod's socket, and opens one of the node's.
func (n *Net) sockets(podSocket *os.File) (pod, host *socket, err error) {
	if pod, err = adoptSocket(podSocket); err != nil {
		return nil, nil, err
	}
	if host, err = openSocket(); err != nil {
		return nil, nil, err
	}
	if c := pod.cookie(); c != 0 && c == host.cookie() {
		host.close()
		return nil, nil, ErrSameNamespace
	}
	return pod, host, nil
}

func (s *socket) close() { _ = s.file.Close() }

func oneLink(s *socket, name string) (link, error) {
	answers, err := s.exchange(getLink(name))
	if errors.Is(err, unix.ENODEV) {
		return link{}, fmt.Errorf("%s is missing", name)
	}
	if err != nil {
		return link{}, err
	}
	if len(answers[0]) != 1 {
		return link{}, fmt.Errorf("get link %s: %d answers", name, len(answers[0]))
	}
	return parseLink(answers[0][0])
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
