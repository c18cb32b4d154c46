package dot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// A rule keeps the newest of each of the newest periods that have commits.
func TestKeepRule(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var commits []dated // the newest first; 2026-03-02 is a Monday
	for i, s := range []string{
		"2026-03-02 12:50", "2026-03-02 12:10", "2026-03-02 09:00", "2026-03-01 23:59", "2026-02-27 10:00",
		"2026-02-27 09:00", "2026-02-20 10:00", "2026-01-31 10:00", "2025-12-29 10:00",
	} {
		commits = append(commits, dated{id: object.Sum(object.KindChunk, []byte{byte(i)}), at: at(s)})
	}
	for _, c := range []struct {
		rule KeepRule
		want []int
	}{
		{KeepRule{Last: 1}, []int{0}},
		{KeepRule{Last: 3}, []int{0, 1, 2}},
		{KeepRule{Last: 100}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{KeepRule{Hourly: 2}, []int{0, 2}},
		{KeepRule{Daily: 3}, []int{0, 3, 4}},
		{KeepRule{Weekly: 2}, []int{0, 3}},
		{KeepRule{Weekly: 100}, []int{0, 3, 6, 7, 8}},
		{KeepRule{Monthly: 2}, []int{0, 4}},
		{KeepRule{Monthly: 4, Last: 2}, []int{0, 1, 4, 7, 8}},
	} {
		kept := c.rule.keeps(commits)
		var got []int
		for i, d := range commits {
			if _, ok := kept[d.id]; ok {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v keeps %v, not %v", c.rule, got, c.want)
		}
	}
	for _, bad := range []KeepRule{{}, {Last: -1, Daily: 3}} {
		if errs.KindOf(bad.Check()) != errs.Usage {
			t.Errorf("%+v is taken for a rule", bad)
		}
	}
}

// history makes n commits of a dot, each with other content, and returns their ids.
func (h *home) history(t testing.TB, n Name, count int) (ids []object.ID) {
	f := h.fs(n)
	for i := range count {
		data := make([]byte, 200<<10)
		rand.NewChaCha8([32]byte{byte(i), byte(h.ticks.Load())}).Read(data)
		f.write("db/file", data)
		f.write(fmt.Sprintf("db/n%d", i), []byte{byte(i)})
		res, err := h.Commit(t.Context(), n, CommitRequest{Message: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, res.ID)
	}
	return ids
}

func (h *home) logged(t testing.TB, n Name, rev string) (ids []string) {
	list, err := h.Log(t.Context(), n, rev, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

func hexes(ids ...object.ID) (list []string) {
	for _, id := range ids {
		list = append(list, id.String())
	}
	return list
}

// readAll reads everything that a commit holds.
func (h *home) readAll(id object.ID) error {
	seen := map[object.ID]bool{}
	var read func(kind object.Kind, id object.ID) error
	read = func(kind object.Kind, id object.ID) error {
		if seen[id] {
			return nil
		}
		seen[id] = true
		plain, err := h.store.Get(context.Background(), kind, id)
		if err != nil {
			return err
		}
		var all []error
		err = object.References(kind, plain, func(r object.Reference) {
			if r.Kind != object.KindCommit {
				all = append(all, read(r.Kind, r.ID))
			}
		})
		return errors.Join(append(all, err)...)
	}
	return read(object.KindCommit, id)
}

// After a prune the history is shorter, no id has changed, and gc gives back the space of what was pruned and only that.
func TestPrune(t *testing.T) {
	h := newHome(t)
	n := name(t, "app")
	if _, err := h.Create(t.Context(), n, CreateOptions{Subdots: []string{"db"}}); err != nil {
		t.Fatal(err)
	}
	ids := h.history(t, n, 8)
	if _, err := h.CreateTag(t.Context(), n, "release", ids[2].String()); err != nil {
		t.Fatal(err)
	}
	rule := PruneRequest{Keep: KeepRule{Last: 3}, DryRun: true}
	dry, err := h.Prune(t.Context(), n, rule)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.logged(t, n, ""); !slices.Equal(got, hexes(ids...)) {
		t.Fatalf("a dry run leaves the log %v", got)
	}
	rule.DryRun = false
	res, err := h.Prune(t.Context(), n, rule)
	if err != nil {
		t.Fatal(err)
	}
	var pruned []string
	for _, c := range res.Pruned {
		pruned = append(pruned, c.ID)
	}
	if !slices.Equal(pruned, hexes(ids[4], ids[3], ids[1], ids[0])) || len(dry.Pruned) != 4 || len(res.Kept) != 4 {
		t.Fatalf("pruned %v, in the dry run %d; kept %d", pruned, len(dry.Pruned), len(res.Kept))
	}
	stats, err := h.store.GC(t.Context(), store.GCOptions{Waste: 1})
	if err != nil {
		t.Fatal(err)
	}
	if stats.BytesFreed < 4*200<<10 || dry.Bytes < 4*200<<10 || dry.Bytes > stats.BytesFreed+stats.BytesFreed/20 {
		t.Errorf("gc freed %d bytes, the dry run announced %d", stats.BytesFreed, dry.Bytes)
	}
	h.reopen()
	kept := []object.ID{ids[2], ids[5], ids[6], ids[7]}
	if got := h.logged(t, n, ""); !slices.Equal(got, hexes(kept...)) {
		t.Errorf("the log is %v", got)
	}
	for i, id := range kept {
		if err := h.readAll(id); err != nil {
			t.Errorf("commit %d: %v", i, err)
		}
	}
	if again, err := h.Prune(t.Context(), n, rule); err != nil || len(again.Pruned) != 0 {
		t.Errorf("a second prune: %+v, %v", again, err)
	}
	h.wantPruned(t, n, ids)
}

// wantPruned checks what users see of the history that TestPrune has left.
func (h *home) wantPruned(t *testing.T, n Name, ids []object.ID) {
	for rev, want := range map[string]object.ID{"HEAD^": ids[6], "HEAD~2": ids[5], "HEAD~3": ids[2], "release": ids[2]} {
		if id, _, err := h.Resolve(t.Context(), n, rev); err != nil || id != want {
			t.Errorf("%s is %s, %v; not %s", rev, id.Short(), err, want.Short())
		}
	}
	for _, rev := range []string{"HEAD~4", ids[0].String(), ids[3].String()[:12]} {
		if id, _, err := h.Resolve(t.Context(), n, rev); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%s is %s, %v", rev, id.Short(), err)
		}
	}
	list, err := h.List(t.Context())
	if err != nil || list[0].Commits != 4 {
		t.Errorf("the list says %+v, %v", list, err)
	}
	// The one before ids[5] has gone; what it changed is told from the one that is left.
	show, err := h.Show(t.Context(), n, ids[5].String())
	if err != nil || len(show.Changes) == 0 {
		t.Errorf("show: %+v, %v", show, err)
	}
	if show.Parents[0] != ids[4].String() {
		t.Errorf("the commit's parent is now %s", show.Parents[0])
	}
	report, err := h.store.Fsck(t.Context(), store.FsckOptions{})
	if err != nil || !report.OK() {
		t.Errorf("fsck: %+v, %v", report, err)
	}
	more, err := h.Commit(t.Context(), n, CommitRequest{Message: "more"})
	if err != nil {
		t.Fatal(err)
	}
	if got := h.logged(t, n, ""); len(got) != 5 || got[4] != more.Commit {
		t.Errorf("after another commit the log is %v", got)
	}
}

// Other branches keep what they have, unless all are pruned; commits made meanwhile stay.
func TestPruneBranches(t *testing.T) {
	h := newHome(t)
	n := name(t, "app")
	if _, err := h.Create(t.Context(), n, CreateOptions{Subdots: []string{"db"}}); err != nil {
		t.Fatal(err)
	}
	ids := h.history(t, n, 4)
	if err := h.branchOut(t.Context(), n, "side"); err != nil {
		t.Fatal(err)
	}
	side := h.history(t, n, 3)
	rule := PruneRequest{Keep: KeepRule{Last: 1}}
	master := n
	master.Branch = "master"
	if res, err := h.Prune(t.Context(), master, rule); err != nil || len(res.Pruned) != 0 || len(res.Kept) != 4 {
		t.Fatalf("all commits of master are side's too, but: %+v, %v", res, err)
	}
	if res, err := h.Prune(t.Context(), n, rule); err != nil || len(res.Pruned) != 2 {
		t.Fatalf("side: %+v, %v", res, err)
	}
	if got := h.logged(t, n, ""); !slices.Equal(got, hexes(append(slices.Clone(ids), side[2])...)) {
		t.Errorf("side has %v", got)
	}
	rule.All = true
	if res, err := h.Prune(t.Context(), n, rule); err != nil || len(res.Pruned) != 3 {
		t.Fatalf("all: %+v, %v", res, err)
	}
	if got := h.logged(t, n, ""); !slices.Equal(got, hexes(ids[3], side[2])) {
		t.Errorf("side has %v", got)
	}
	if _, err := h.store.GC(t.Context(), store.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []object.ID{ids[3], side[2]} {
		if err := h.readAll(id); err != nil {
			t.Error(err)
		}
	}
}

// The figures of Usage add up, and what they say that a dot holds alone is what its deletion frees.
func TestUsage(t *testing.T) {
	h := newHome(t)
	a, b := name(t, "a"), name(t, "b")
	for _, n := range []Name{a, b} {
		if _, err := h.Create(t.Context(), n, CreateOptions{Subdots: []string{"db"}}); err != nil {
			t.Fatal(err)
		}
	}
	shared := bytes.Repeat([]byte("what both dots have, without a single change. "), 30_000)
	h.history(t, a, 3)
	h.fs(a).write("db/shared", shared)
	h.history(t, a, 1)
	h.fs(b).write("db/shared", shared)
	h.history(t, b, 2)
	if err := h.branchOut(t.Context(), a, "side"); err != nil {
		t.Fatal(err)
	}
	h.history(t, a, 2)
	list, err := h.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ua, ub := list[0], list[1]
	if len(ua.Branches) != 2 || len(ua.Branches[0].Commits) != 4 || len(ua.Branches[1].Commits) != 6 {
		t.Fatalf("usage of a: %+v", ua)
	}
	common := ua.Stored - ua.Alone
	if common <= 0 || common != ub.Stored-ub.Alone {
		t.Errorf("a shares %d bytes, b %d", common, ub.Stored-ub.Alone)
	}
	if master := ua.Branches[0]; master.Alone != 0 || master.Stored <= 0 || ua.Branches[1].Alone < 2*200<<10 {
		t.Errorf("master, which is all in side, holds %d alone; side %d", master.Alone, ua.Branches[1].Alone)
	}
	for _, c := range ua.Branches[1].Commits {
		if c.Alone < 100<<10 || c.Stored < c.Alone || c.Logical < 200<<10 {
			t.Errorf("commit %s: %+v", c.Message, c.Space)
		}
	}
	if err := h.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	stats, err := h.store.GC(t.Context(), store.GCOptions{Waste: 1})
	if err != nil {
		t.Fatal(err)
	}
	if stats.BytesFreed < ua.Alone*95/100 || stats.BytesFreed > ua.Alone*105/100 {
		t.Errorf("the dot alone held %d bytes, its deletion freed %d", ua.Alone, stats.BytesFreed)
	}
}

// Automatic commits are made when they are due, with a rule of their own that leaves what users have committed.
func TestAutoCommit(t *testing.T) {
	h := newHome(t)
	n := name(t, "app")
	info, err := h.Create(t.Context(), n, CreateOptions{Subdots: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	hand := h.history(t, n, 2)
	auto := &AutoCommit{Every: 10 * time.Minute, IfDirty: true, Keep: KeepRule{Last: 2}}
	if err := h.SetAutoCommit(t.Context(), n, &AutoCommit{Every: time.Millisecond}); errs.KindOf(err) != errs.Usage {
		t.Errorf("every millisecond: %v", err)
	}
	if err := h.SetAutoCommit(t.Context(), n, auto); err != nil {
		t.Fatal(err)
	}
	due, err := h.AutoCommits()
	if err != nil || len(due) != 1 || due[info.ID].Sub(time.Unix(1e9, 0)) < auto.Every {
		t.Fatalf("due: %v, %v", due, err)
	}
	var made []string
	for i := range 5 {
		res, err := h.RunAutoCommit(t.Context(), info.ID, h.Commit)
		if err != nil || res.Commit != nil {
			t.Fatalf("a run while nothing had changed: %+v, %v", res, err)
		}
		h.fs(n).write("db/file", []byte(fmt.Sprint(i)))
		if res, err = h.RunAutoCommit(t.Context(), info.ID, h.Commit); err != nil || res.Commit == nil {
			t.Fatalf("a run: %+v, %v", res, err)
		}
		made = append(made, res.Commit.Commit)
		h.reopen()
	}
	if got := h.logged(t, n, ""); !slices.Equal(got, append(hexes(hand...), made[3:]...)) {
		t.Errorf("the log is %v", got)
	}
	set, err := h.AutoCommit(t.Context(), n)
	if err != nil || set.Commit != made[4] || set.Error != "" || !set.Due().After(set.Last) {
		t.Errorf("the setting is %+v, %v", set, err)
	}
	if err := h.SetAutoCommit(t.Context(), n, nil); err != nil {
		t.Fatal(err)
	}
	h.fs(n).write("db/file", []byte("more"))
	if res, err := h.RunAutoCommit(t.Context(), info.ID, h.Commit); err != nil || res.Commit != nil {
		t.Errorf("a run of what was switched off: %+v, %v", res, err)
	}
	if set, err := h.AutoCommit(t.Context(), n); set != nil || err != nil {
		t.Errorf("what was switched off: %+v, %v", set, err)
	}
}
