// SPDX-License-Identifier: Apache-2.0

package probe

import "github.com/heliograph-dev/heliograph/felix/path"

// witnesses is how many answers by another method it takes to call a method Lost: the other end was there to
// answer while it did not by this one.
const witnesses = 2

// testimony is what is known of one method to one target: what its agent and what its kernel answered.
type testimony struct {
	needed     bool
	udp, icmp  *track
	kernelAble bool // the kernel can be asked
}

// ruling is what that means.
type ruling struct {
	verdict path.Verdict
	kernel  bool // it rests on the kernel's answers
}

// judge weighs the methods to one target against each other. Silent says that nothing answers, so that there
// is no word about any single one.
func judge(in *[path.Methods]testimony) (out [path.Methods]ruling, silent bool) {
	needed, lost, kernelAnswers, kernelLost, able := 0, 0, 0, 0, false
	for i := range in {
		t := &in[i]
		if !t.needed {
			continue
		}
		needed++
		able = able || t.kernelAble
		if t.udp.losing(path.Window) {
			lost++
		}
		if t.icmp.answering(1) {
			kernelAnswers++
		}
		if t.icmp.losing(path.Window) {
			kernelLost++
		}
	}
	agents := func(t *testimony) *track { return t.udp }
	kernels := func(t *testimony) *track { return t.icmp }
	switch {
	case needed == 0:
	case lost < needed:
		rule(in, &out, false, agents)
	case kernelAnswers > 0:
		rule(in, &out, true, kernels)
	case !able || kernelLost == needed:
		return out, true
	default: // the kernel is being asked
		for i := range in {
			if in[i].needed {
				out[i].verdict = path.Doubtful
			}
		}
	}
	return out, false
}

// rule gives each needed method a verdict by one kind of answers.
func rule(in *[path.Methods]testimony, out *[path.Methods]ruling, kernel bool, of func(*testimony) *track) {
	for i := range in {
		if !in[i].needed {
			continue
		}
		t := of(&in[i])
		out[i] = ruling{verdict: path.Doubtful, kernel: kernel}
		switch {
		case t.count == 0:
			out[i].verdict = path.Unknown
		case t.answered:
			out[i].verdict = path.Answers
		case t.losing(path.Window) && others(in, i, of) >= witnesses:
			out[i].verdict = path.Lost
		}
	}
}

// others counts the answers by another method, of the same kind, to questions that were sent since the first
// one of this run of losses. A kernel's answers are no witnesses against an agent's silence.
func others(in *[path.Methods]testimony, method int, of func(*testimony) *track) int {
	most, since := 0, of(&in[method]).since
	for i := range in {
		if i != method {
			most = max(most, of(&in[i]).answeredSince(since))
		}
	}
	return most
}
