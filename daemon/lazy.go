package daemon

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store"
)

const (
	// faultWait is how long a read waits for a remote, tries and all. Then it fails with EIO.
	faultWait = 30 * time.Second
	// faultRest is for how long no remote is asked after one did not answer: reads fail at once meanwhile.
	faultRest = 3 * time.Second

	// Of chunks, those that stand behind the one wanted are fetched with it: few at first, more for who reads on.
	leastAhead = 4
	mostAhead  = 128
	// keptNodes is how many lists and trees that were read last are known, to find out what stands behind a chunk.
	keptNodes = 64
)

// faults is the store with what is behind it: what is not here of lazy dots is fetched from where they came when it is
// read, and stored. It is an object.Source for all dots; a dot that is not lazy never comes to ask a remote, because all
// that it reads is here.
type faults struct {
	store   *store.Store
	remotes *remotes
	log     *slog.Logger

	mu      sync.Mutex
	nodes   []*chunkNode // read last, the latest at the end
	flying  map[object.ID]chan struct{}
	origins []dot.Origin // nil: to be looked up
	down    time.Time    // until then no remote is asked
	why     error
}

// chunkNode is a list or tree that names chunks, and how far they have been fetched.
type chunkNode struct {
	id     object.ID
	chunks []object.ID // in order, without holes
	next   int         // behind what was fetched last
	ahead  int         // how many were
}

func newFaults(st *store.Store, rem *remotes, log *slog.Logger) *faults {
	return &faults{store: st, remotes: rem, log: log, flying: map[object.ID]chan struct{}{}}
}

// Get returns an object, after fetching it if it is not here and there is somebody to ask.
func (f *faults) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	plain, err := f.store.Get(ctx, kind, id)
	if errs.KindOf(err) == errs.NotFound && kind != object.KindCommit {
		if from := f.sources(); len(from) > 0 {
			if err := f.fetch(ctx, kind, id, from); err != nil {
				return nil, err
			}
			plain, err = f.store.Get(ctx, kind, id)
		}
	}
	if err == nil && (kind == object.KindList || kind == object.KindTree) {
		f.note(kind, id, plain)
	}
	return plain, err
}

// changed has the origins looked up again: a dot has come, gone or is not lazy any more.
func (f *faults) changed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.origins, f.down = nil, time.Time{}
}

// sources returns whom to ask.
func (f *faults) sources() []dot.Origin {
	f.mu.Lock() // over the look-up: a dot that comes meanwhile calls changed after it
	defer f.mu.Unlock()
	if f.origins != nil {
		return f.origins
	}
	list, err := dot.Origins(f.store)
	if err != nil {
		f.log.Error("look up where lazy dots come from", "err", err)
		return nil
	}
	if f.origins = list; list == nil {
		f.origins = []dot.Origin{}
	}
	return list
}

// fetch brings an object and what is likely to be wanted next. One that is on its way already is waited for.
func (f *faults) fetch(ctx context.Context, kind object.Kind, id object.ID, from []dot.Origin) error {
	ctx, cancel := context.WithTimeout(ctx, faultWait)
	defer cancel()
	for {
		f.mu.Lock()
		if time.Now().Before(f.down) {
			defer f.mu.Unlock()
			return f.why
		}
		wait, ok := f.flying[id]
		if !ok {
			break
		}
		f.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return f.failed(ctx, kind, id, ctx.Err())
		}
		if has, err := f.store.Has(id); err != nil || has {
			return err
		}
	}
	wants := []remote.Want{{Kind: kind, ID: id}}
	if kind == object.KindChunk {
		wants = f.behind(id)
	}
	done := make(chan struct{})
	for _, w := range wants {
		f.flying[w.ID] = done
	}
	f.mu.Unlock()
	err := f.ask(ctx, wants, from)
	f.mu.Lock()
	for _, w := range wants {
		delete(f.flying, w.ID)
	}
	close(done)
	f.mu.Unlock()
	if err != nil {
		return f.failed(ctx, kind, id, err)
	}
	return nil
}

// ask asks one origin after the other until one has it.
func (f *faults) ask(ctx context.Context, wants []remote.Want, from []dot.Origin) error {
	var last error
	for _, o := range from {
		err := f.askOne(ctx, wants, o)
		if err == nil {
			return nil
		}
		// Who does not have it says so in one way or the other; who does not answer may have it.
		if last == nil || errs.KindOf(err) == errs.Unreachable {
			last = err
		}
	}
	return last
}

func (f *faults) askOne(ctx context.Context, wants []remote.Want, o dot.Origin) error {
	_, d, done, err := f.remotes.dot(api.Remote{URL: o.URL, Key: o.Key, Fingerprint: o.Fingerprint}, o.Name)
	if err != nil {
		return err
	}
	defer done()
	_, err = remote.FetchObjects(ctx, remote.FromStore(f.store), d, wants)
	return err
}

// failed is the error of a read that a remote could not serve. It wraps nothing: an errno in it would reach the process that
// reads, which is to see EIO.
func (f *faults) failed(ctx context.Context, kind object.Kind, id object.ID, cause error) error {
	if ctx.Err() != nil && errs.KindOf(ctx.Err()) == errs.Interrupted {
		return ctx.Err()
	}
	err := errs.WithHint(errs.New(errs.Unreachable, "%s %s is not here yet and cannot be fetched from where the dot was cloned: %s", kind, id.Short(), cause.Error()),
		"it is fetched as soon as the remote answers again; 'dm pull --complete' fetches all")
	if errs.KindOf(cause) == errs.Unreachable {
		f.mu.Lock()
		f.down, f.why = time.Now().Add(faultRest), err
		f.mu.Unlock()
	}
	f.log.Warn("data of a lazy dot cannot be fetched", "kind", kind, "object", id.Short(), "err", cause)
	return err
}

// note remembers what chunks a list or a tree names, in order.
func (f *faults) note(kind object.Kind, id object.ID, plain []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.origins) == 0 {
		return // nobody is lazy
	}
	if i := slices.IndexFunc(f.nodes, func(n *chunkNode) bool { return n.id == id }); i >= 0 {
		n := f.nodes[i]
		f.nodes = append(slices.Delete(f.nodes, i, i+1), n)
		return
	}
	n := &chunkNode{id: id}
	err := object.References(kind, plain, func(r object.Reference) {
		if r.Kind == object.KindChunk {
			n.chunks = append(n.chunks, r.ID)
		}
	})
	if err != nil || len(n.chunks) == 0 {
		return
	}
	if len(f.nodes) == keptNodes {
		f.nodes = slices.Delete(f.nodes, 0, 1)
	}
	f.nodes = append(f.nodes, n)
}

// behind returns a chunk and those that stand behind it and are not here. Called with mu held.
func (f *faults) behind(id object.ID) []remote.Want {
	wants := []remote.Want{{Kind: object.KindChunk, ID: id}}
	for i := len(f.nodes) - 1; i >= 0; i-- {
		n := f.nodes[i]
		at := slices.Index(n.chunks, id)
		if at < 0 {
			continue
		}
		if n.ahead = max(n.ahead, leastAhead); at == n.next && at > 0 {
			n.ahead = min(2*n.ahead, mostAhead)
		} else {
			n.ahead = leastAhead
		}
		end := min(at+n.ahead, len(n.chunks))
		for _, c := range n.chunks[at+1 : end] {
			_, flying := f.flying[c]
			if has, err := f.store.Has(c); err == nil && !has && !flying {
				wants = append(wants, remote.Want{Kind: object.KindChunk, ID: c})
			}
		}
		n.next = end
		break
	}
	return wants
}
