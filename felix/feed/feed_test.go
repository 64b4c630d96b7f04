// SPDX-License-Identifier: Apache-2.0

package feed

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const pods Kind = "pods"

func pod(name, value string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": value}}}
}

func key(name string) Key { return Key{pods, "ns", name} }

// texts are changes as "name=label", or "name gone".
func texts(changes []Change) string {
	var out []string
	for _, c := range changes {
		if c.Object == nil {
			out = append(out, c.Key.Name+" gone")
		} else {
			out = append(out, c.Key.Name+"="+c.Object.GetLabels()["app"])
		}
	}
	return strings.Join(out, ", ")
}

func want(t *testing.T, what string, changes []Change, text string) {
	t.Helper()
	if diff := cmp.Diff(text, texts(changes)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func say(f *Feed, name, value string) { f.Put(key(name), pod(name, value)) }

func TestTheLastWordCounts(t *testing.T) {
	f := New()
	say(f, "a", "1")
	say(f, "b", "1")
	say(f, "a", "2")
	f.Delete(key("b"))
	select {
	case <-f.Changed():
	default:
		t.Error("not poked")
	}
	want(t, "taken", f.Take(), "a=2, b gone")
	want(t, "taken again", f.Take(), "")
}

func TestSeed(t *testing.T) {
	f := New()
	say(f, "taken", "live")
	f.Take()
	say(f, "live", "live")
	f.Delete(key("dead"))
	f.Seed([]Change{
		{key("taken"), pod("taken", "disk")}, {key("live"), pod("live", "disk")}, {key("dead"), pod("dead", "disk")},
		{key("old"), pod("old", "disk")}, {key("gone"), pod("gone", "disk")},
	})
	want(t, "seeded", f.Take(), "dead gone, gone=disk, live=live, old=disk")
	if f.Synced() {
		t.Error("Synced before MarkSynced")
	}
	say(f, "old", "live")
	f.MarkSynced()
	want(t, "in sync", f.Take(), "gone gone, old=live")
	f.Seed([]Change{{key("late"), pod("late", "disk")}})
	want(t, "seeded too late", f.Take(), "")
	if !f.Synced() {
		t.Error("not Synced after MarkSynced")
	}
}

func journal(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path, map[Kind]func() client.Object{pods: func() client.Object { return &corev1.Pod{} }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// reopened closes a journal, and returns what the next process finds.
func reopened(t *testing.T, j *Journal, path string) (*Journal, []Change, bool) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = journal(t, path)
	changes, complete, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	return j, changes, complete
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db")
	j := journal(t, path)
	j.Note([]Change{{key("early"), pod("early", "1")}}, false)
	j, changes, complete := reopened(t, j, path)
	want(t, "before all was said", changes, "early=1")
	if complete {
		t.Error("complete, but never whole")
	}
	j.Note([]Change{{key("a"), pod("a", "1")}, {key("b"), pod("b", "1")}}, true)
	j.Note([]Change{{key("b"), nil}, {key("c"), pod("c", "1")}}, false)
	j, changes, complete = reopened(t, j, path)
	want(t, "whole", changes, "a=1, c=1")
	if !complete {
		t.Error("not complete")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBrokenJournal: what cannot be read is set aside, and is no reason not to start.
func TestBrokenJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("nonsense", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	j := journal(t, path)
	j.Note([]Change{{key("a"), pod("a", "1")}}, true)
	j, changes, complete := reopened(t, j, path)
	want(t, "after the broken file", changes, "a=1")
	if !complete {
		t.Error("not complete")
	}
	if _, err := os.Stat(path + ".broken"); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk: what could not be written is written later, and what is newer wins.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.db")
	j := journal(t, path)
	good := j.db
	broken, err := open(path + "2")
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	j.db = broken // writes fail
	j.Note([]Change{{key("a"), pod("a", "1")}, {key("b"), pod("b", "1")}}, true)
	if err := j.write(); err == nil {
		t.Fatal("a closed file was written")
	}
	j.Note([]Change{{key("b"), pod("b", "2")}}, false)
	j.db = good
	j, changes, complete := reopened(t, j, path)
	want(t, "in the end", changes, "a=1, b=2")
	if !complete {
		t.Error("not complete")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
