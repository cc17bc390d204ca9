package main

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/registrar"
)

func TestView(t *testing.T) {
	at := time.Now()
	beat := func(at time.Time, version string) api.State {
		return api.State{Agents: []api.AgentState{{Name: "vm1", At: at, Heartbeat: api.Heartbeat{Version: version}}}}
	}
	turn := reconciler.Turn{
		Commit: reconciler.Commit{Revision: &repo.Revision{Commit: "good"}, Fleet: &fleet.Fleet{}},
		World: reconciler.World{Edges: map[string]edges.Live{
			"tokyo": {State: beat(at, "old")}, "osaka": {State: beat(at.Add(time.Second), "new")},
		}},
	}
	for _, test := range []struct{ head, trouble, want string }{
		{"good", "", ""},
		// The world's trouble is none of the repo's: its files are those at the head.
		{"good", "the zone refuses updates", ""},
		{"bad", "routes/x.cue:1:1: no", "routes/x.cue:1:1: no"},
		{"", "the repo cannot be reached", "the repo cannot be reached"},
	} {
		v := view(turn, &reconciler.Status{Head: reconciler.RevisionStatus{Commit: test.head}, Error: test.trouble}, keys.Secret{1})
		if v.Trouble != test.want || v.Commit != "good" || v.Heartbeats["vm1"].Version != "new" {
			t.Errorf("head %q: %+v", test.head, v)
		}
	}
}

// A listener that fails is heard of, although nobody has ended anything.
func TestHostsCannotBeAnswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		r := &registrar.Registrar{}
		ended <- (&joining{listener: l}).run(context.WithoutCancel(t.Context()), r, r.Handler())
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it is not heard of")
	}
}
