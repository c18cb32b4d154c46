package remote_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/remotetest"
	"dm/store/pack"
)

// liar is a remote that changes what it sends.
type liar struct {
	remote.Dot
	change func(r *pack.Record) []*pack.Record
}

func (l *liar) Load(ctx context.Context, req remote.Request, fn func(*pack.Record) error) error {
	return l.Dot.Load(ctx, req, func(r *pack.Record) error {
		for _, r := range l.change(r) {
			if err := fn(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// Whatever a remote sends instead of what was asked for, nothing of it becomes a commit of the local store.
func TestHostileRemote(t *testing.T) {
	ctx := context.Background()
	path := t.TempDir()
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 40)
	w.Write("db/two", 1)
	tip := w.Commit("first")
	d := openDir(t, path)
	if _, err := remote.PushRef(ctx, local, d, remote.Push{Ref: "heads/master", Tip: tip}); err != nil {
		t.Fatal(err)
	}
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	whole := func(kind object.Kind, id object.ID, plain []byte) *pack.Record {
		b, _ := codec.Append(nil, kind, id, plain)
		r, err := pack.ParseRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		return &r
	}
	n := byte(0)
	cases := map[string]func(r *pack.Record) []*pack.Record{
		"nothing":     func(r *pack.Record) []*pack.Record { return nil },
		"other bytes": func(r *pack.Record) []*pack.Record { return []*pack.Record{whole(r.Kind, r.ID, []byte("x"))} },
		"other kind": func(r *pack.Record) []*pack.Record {
			c := *r
			c.Kind = r.Kind%4 + 1
			return []*pack.Record{&c}
		},
		"chunks left out": func(r *pack.Record) []*pack.Record {
			if r.Kind == object.KindChunk {
				return nil
			}
			return []*pack.Record{r}
		},
		"flipped bit": func(r *pack.Record) []*pack.Record {
			c := *r
			c.Payload = bytes.Clone(r.Payload)
			c.Payload[len(c.Payload)/2] ^= 1
			return []*pack.Record{&c}
		},
		"chain of deltas without end": func(r *pack.Record) []*pack.Record {
			c := *r
			n++
			c.Encoding, c.Base, c.Payload = pack.Delta, object.ID{n, 1}, []byte{0, 0}
			return []*pack.Record{&c}
		},
		"delta of itself by a detour": func(r *pack.Record) []*pack.Record {
			a, b := *r, *r
			a.Encoding, a.Base, a.Payload = pack.Delta, object.ID{5}, []byte{0, 0}
			b.Encoding, b.Base, b.Payload, b.ID = pack.Delta, r.ID, []byte{0, 0}, object.ID{5}
			return []*pack.Record{&a, &b}
		},
		"deltas that do not fit in memory": func(r *pack.Record) []*pack.Record {
			if r.Kind != object.KindChunk {
				return []*pack.Record{r}
			}
			c := *r
			n++
			c.Encoding, c.Base, c.Payload = pack.Delta, object.ID{n, 3}, make([]byte, object.MaxSize)
			return []*pack.Record{&c}
		},
		"what nobody asked for, without end": func(r *pack.Record) []*pack.Record {
			var list []*pack.Record
			for i := range 5000 {
				list = append(list, whole(object.KindTree, object.ID{byte(i), byte(i >> 8), 77}, bytes.Repeat([]byte{byte(i), 9, byte(i >> 8)}, 5000)))
			}
			for _, l := range list {
				l.Encoding, l.Payload, l.PayloadLen = pack.Raw, make([]byte, 15000), 15000
			}
			return append(list, r)
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			other := remotetest.OpenStore(t)
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			_, _, err := remote.Fetch(ctx, other, &liar{d, change}, []object.ID{tip}, nil, remote.FetchOptions{})
			if errs.KindOf(err) != errs.Damaged {
				t.Errorf("error %v, want one of kind damaged", err)
			}
			if has, err := other.Has(tip); err != nil || has {
				t.Errorf("the commit is there (%v)", err)
			}
			// And the truth still comes through.
			if _, release, err := remote.Fetch(ctx, other, d, []object.ID{tip}, nil, remote.FetchOptions{}); err != nil {
				t.Error(err)
			} else {
				release()
				remotetest.Verify(t, other, tip)
			}
		})
	}
}

// inventor is a remote that says of everything that it is missing, and of something that nobody asked for, too.
type inventor struct {
	remote.Dot
	more func(asked []object.ID) []object.ID
}

func (i *inventor) Missing(_ context.Context, ids []object.ID) ([]object.ID, error) {
	return i.more(ids), nil
}

// A remote that says of what it was not asked for that it is missing ends the push.
func TestMissingThatNobodyAskedFor(t *testing.T) {
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 3)
	tip := w.Commit("first")
	d := openDir(t, t.TempDir())
	for name, more := range map[string]func([]object.ID) []object.ID{
		"another": func(ids []object.ID) []object.ID { return append(ids[:len(ids):len(ids)], object.ID{9}) },
		"twice":   func(ids []object.ID) []object.ID { return append(ids[:len(ids):len(ids)], ids...) },
	} {
		_, err := remote.Send(context.Background(), local, &inventor{d, more}, []object.ID{tip}, nil, remote.SendOptions{})
		if errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: error %v, want one of kind damaged", name, err)
		}
	}
}

// A commit that says other totals of its tree than it has is refused: the working copy relies on them. Neither numbers that are
// wrong together, nor naming the tree as a table of links before, of which nothing is said, get around that.
func TestTotalsThatLie(t *testing.T) {
	ctx := context.Background()
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 40)
	tip := w.Commit("first")
	d := openDir(t, t.TempDir())
	if _, err := remote.Send(ctx, local, d, []object.ID{tip}, nil, remote.SendOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, lie := range map[string]func(c *object.Commit){
		"bytes":          func(c *object.Commit) { c.Root.Totals.Bytes++ },
		"bytes and dirs": func(c *object.Commit) { c.Root.Totals.Bytes++; c.Root.Totals.Subdirs++ },
		"as links":       func(c *object.Commit) { c.Root.Totals.Files++; c.Links = c.Root.Tree },
	} {
		plain, err := local.Get(ctx, object.KindCommit, tip)
		if err != nil {
			t.Fatal(err)
		}
		c, err := object.DecodeCommit(plain)
		if err != nil {
			t.Fatal(err)
		}
		lie(c)
		b, err := local.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		liar, err := b.PutOver(ctx, object.KindCommit, c.Encode(), object.ID{})
		if err = errors.Join(err, b.Commit(ctx)); err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Send(ctx, local, d, []object.ID{liar}, nil, remote.SendOptions{}); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: sent: %v", name, err)
		}
		// Nor is it taken from a remote that has it.
		from := &withCommit{Dot: d, id: liar, plain: c.Encode()}
		if _, _, err := remote.Fetch(ctx, remotetest.OpenStore(t), from, []object.ID{liar}, nil, remote.FetchOptions{}); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: fetched: %v", name, err)
		}
	}
}

// withCommit is a remote with one commit more.
type withCommit struct {
	remote.Dot
	id    object.ID
	plain []byte
}

func (w *withCommit) Load(ctx context.Context, req remote.Request, fn func(*pack.Record) error) error {
	for _, want := range req.Wants {
		if want.ID == w.id {
			r := pack.Record{Head: pack.Head{Kind: object.KindCommit, Encoding: pack.Raw, PlainLen: len(w.plain), PayloadLen: len(w.plain), ID: w.id}, Payload: w.plain}
			return fn(&r)
		}
	}
	return w.Dot.Load(ctx, req, fn)
}

// The memory of a push and a pull does not grow with what is moved.
func TestMemoryIsBounded(t *testing.T) {
	ctx := context.Background()
	local, other := remotetest.OpenStore(t), remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	for i := range 6 {
		w.Write("db/"+string(rune('a'+i)), 1000) // 64 MB each
	}
	tip := w.Commit("first")
	d := openDir(t, t.TempDir())
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	watch := func(remote.Progress) {
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapInuse)
	}
	last := time.Now()
	sometimes := func(p remote.Progress) {
		if time.Since(last) > 20*time.Millisecond {
			watch(p)
			last = time.Now()
		}
	}
	if _, err := remote.Send(ctx, local, d, []object.ID{tip}, nil, remote.SendOptions{Progress: sometimes}); err != nil {
		t.Fatal(err)
	}
	_, release, err := remote.Fetch(ctx, other, d, []object.ID{tip}, nil, remote.FetchOptions{Progress: sometimes})
	if err != nil {
		t.Fatal(err)
	}
	release()
	// Two local stores keep 64 MiB each in their caches, and the test's own 384 MB of files are in before.
	if grown := int64(peak) - int64(before.HeapInuse); grown > 230<<20 {
		t.Errorf("the heap grew by %d MiB for 384 MB of files", grown>>20)
	} else {
		t.Logf("the heap grew by %d MiB for 384 MB of files", grown>>20)
	}
}
