package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// transfers is what is on its way, for `dm transfers`.
type transfers struct {
	mu  sync.Mutex
	all map[string]*api.Transfer
}

// transfer is one transfer that runs: what its client is told, and what `dm transfers` shows.
type transfer struct {
	list *transfers
	out  *api.Stream
	verb string // "pushing", for progress

	row   *api.Transfer // guarded by list.mu
	last  time.Time     // when the client was last told
	told  api.Progress
	part  int
	parts int
	res   api.TransferResult
}

// way is what goes from where to where, as all transfers have it.
type way struct {
	s     *server
	n     dot.Name      // here
	u     dot.Upstream  // there
	rem   remote.Remote // where that is
	there remote.Dot
	t     *transfer
	first bool // the dot has no upstream at this remote yet
}

// between finds the dots that a push or a pull is between. done is to be called at its end.
func (s *server) between(ctx context.Context, name, branch string, rem api.Remote, asked string) (w way, done func(), err error) {
	w.s = s
	if w.n, err = transferNames(name, branch); err != nil {
		return w, nil, err
	}
	if w.u, w.first, err = s.counterpart(ctx, w.n, rem, asked); err != nil {
		return w, nil, err
	}
	w.rem, w.there, done, err = s.remotes.dot(rem, w.u.Name)
	return w, done, err
}

// remember makes the counterpart of a dot its upstream if it has none at this remote.
func (w *way) remember(ctx context.Context) error {
	if !w.first {
		return nil
	}
	return w.s.dots.SetUpstream(ctx, w.n, w.u)
}

// tellEvery is how often a client is told how far its transfer is.
const tellEvery = 100 * time.Millisecond

// begin enters a transfer into the list; end takes it out.
func (t *transfers) begin(out *api.Stream, row api.Transfer, verb string) *transfer {
	var b [4]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	row.ID, row.Started = hex.EncodeToString(b[:]), time.Now()
	x := &transfer{list: t, out: out, verb: verb, row: &row}
	x.res.Dot, x.res.Remote = row.Dot, row.Remote
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[string]*api.Transfer{}
	}
	t.all[row.ID] = &row
	return x
}

func (t *transfer) end() {
	t.list.mu.Lock()
	defer t.list.mu.Unlock()
	delete(t.list.all, t.row.ID)
}

// rows returns what runs, the oldest first.
func (t *transfers) rows() []api.Transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := []api.Transfer{}
	for _, row := range t.all {
		rows = append(rows, *row)
	}
	slices.SortFunc(rows, func(a, b api.Transfer) int { return a.Started.Compare(b.Started) })
	return rows
}

func (s *server) listTransfers(context.Context, api.Empty) (api.TransfersResult, error) {
	return api.TransfersResult{Transfers: s.transfers.rows()}, nil
}

// on begins with the next ref. At its end the client is told the last word of its progress.
func (t *transfer) on(ref string) {
	t.part++
	t.list.mu.Lock()
	t.row.Ref = ref
	t.row.Done, t.row.Total, t.row.Wire = 0, 0, 0
	t.list.mu.Unlock()
	t.told = api.Progress{}
}

// progress notes how far the ref at hand is, and tells the client now and then. Package remote calls it once at a time.
func (t *transfer) progress(p remote.Progress) {
	t.list.mu.Lock()
	t.row.Done, t.row.Total, t.row.Wire = p.Bytes, p.TotalBytes, p.Wire
	t.list.mu.Unlock()
	t.told = api.Progress{Stage: t.verb, Done: p.Bytes, Total: p.TotalBytes, Bytes: true, Part: t.part, Parts: t.parts}
	if now := time.Now(); now.Sub(t.last) >= tellEvery {
		t.last = now
		t.out.Progress(t.told)
	}
}

// did tells the client what became of a ref.
func (t *transfer) did(item api.Travel) error {
	if t.told.Stage != "" {
		t.out.Progress(t.told)
		t.told = api.Progress{}
	}
	if item.Did == api.DidMove || item.Did == api.DidMake {
		t.res.Moved++
	}
	return t.out.Tell(item)
}

// add adds what a ref has cost.
func (t *transfer) add(st remote.Stats) {
	t.res.Bytes += st.Bytes
	t.res.Objects += st.Objects
	t.res.Packs += st.Packs
	t.res.Commits += st.Commits
}

// countWait is how long the end of a transfer waits for the number of objects of what was transferred: it is something to
// say, not something to wait for.
const countWait = time.Second

// measure finds out how large a commit is, while it travels or after. What it returns ends it and notes the result.
func (s *server) measure(ctx context.Context, id object.ID, res *api.TransferResult) (finish func()) {
	type figures struct{ size, objects int64 }
	found := make(chan figures, 1)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		var f figures
		defer func() { found <- f }()
		size, err := s.dots.Size(ctx, id)
		if err != nil {
			return
		}
		f.size = int64(size)
		if f.objects, err = remote.Count(ctx, s.store, id); err != nil {
			f.objects = 0
		}
	}()
	return func() {
		stop := time.AfterFunc(countWait, cancel)
		f := <-found
		stop.Stop()
		cancel()
		res.Size, res.Total = f.size, f.objects
	}
}

// refWords writes a ref as users say it: "branch master", "tag v1".
func refWords(ref string) string {
	if name, ok := strings.CutPrefix(ref, remote.Heads); ok {
		return "branch " + name
	}
	return "tag " + strings.TrimPrefix(ref, remote.Tags)
}

// branchNames returns those of refs that are branches, by name.
func branchNames(refs map[string]object.ID) map[string]object.ID { return named(refs, remote.Heads) }

// tagNames returns those of refs that are tags, by name.
func tagNames(refs map[string]object.ID) map[string]object.ID { return named(refs, remote.Tags) }

func named(refs map[string]object.ID, prefix string) map[string]object.ID {
	names := map[string]object.ID{}
	for ref, id := range refs {
		if name, ok := strings.CutPrefix(ref, prefix); ok {
			names[name] = id
		}
	}
	return names
}

// transferNames reads the dot and the branch that a request names; a branch may be in either.
func transferNames(dotName, branch string) (dot.Name, error) {
	n, err := branchName(dotName)
	if err != nil || branch == "" {
		return n, err
	}
	if n.Branch != "" && n.Branch != branch {
		return n, errs.New(errs.Usage, "the branch is named twice, as '%s' and as '%s'", n.Branch, branch)
	}
	n.Branch = branch
	return n, dot.CheckName("branch", branch)
}

// tagsWithin returns those of tags whose commits are among what leads to tips.
func (s *server) tagsWithin(ctx context.Context, tips []object.ID, tags map[string]object.ID) (map[string]object.ID, error) {
	found, err := s.dots.Contains(ctx, tips, slices.Collect(maps.Values(tags)))
	if err != nil {
		return nil, err
	}
	within := map[string]object.ID{}
	for tag, id := range tags {
		if found[id] {
			within[tag] = id
		}
	}
	return within, nil
}
