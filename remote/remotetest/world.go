package remotetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// pageSize is the size of the chunks of a World's files.
const pageSize = 64 << 10

// World is a small application's state, which a test changes and commits: files of pages, some of them in a directory of
// their own, of which the first bytes of a page change as a database changes them.
type World struct {
	t     testing.TB
	local remote.Local
	rng   *rand.Rand
	files map[string][][]byte
	ids   map[string][]object.ID
	Tip   object.ID // the last commit; zero: none
}

// NewWorld returns a world whose commits go to a local store.
func NewWorld(t testing.TB, local remote.Local, seed uint64) *World {
	return &World{t: t, local: local, rng: rand.New(rand.NewPCG(seed, 1)), files: map[string][][]byte{}, ids: map[string][]object.ID{}}
}

// Write makes a file of so many pages anew, with content that compresses a little.
func (w *World) Write(name string, pages int) {
	w.files[name] = nil
	delete(w.ids, name)
	for range pages {
		p := make([]byte, pageSize)
		for i := 0; i+8 <= len(p); i += 16 {
			binary.LittleEndian.PutUint64(p[i:], w.rng.Uint64())
		}
		w.files[name] = append(w.files[name], p)
	}
}

// Touch changes a few bytes of one page.
func (w *World) Touch(name string, page int) {
	p := slices.Clone(w.files[name][page])
	binary.LittleEndian.PutUint64(p[w.rng.IntN(pageSize/8)*8:], w.rng.Uint64())
	w.files[name][page] = p
}

// Commit commits the state on top of Tip and returns the commit.
func (w *World) Commit(message string) object.ID {
	w.t.Helper()
	ctx := context.Background()
	b, err := w.local.Begin(ctx)
	must(w.t, err)
	defer b.Abort()
	sink := sinkOf{b}
	dirs := map[string][]object.Edit{}
	names := make([]string, 0, len(w.files))
	for name := range w.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		dir, base, _ := strings.Cut(name, "/")
		dirs[dir] = append(dirs[dir], object.Edit{Name: base, Entry: &object.Entry{
			Name: base, Ino: uint64(100 + i), Mode: object.ModeRegular | 0o644, Content: w.content(ctx, b, name),
		}})
	}
	var top []object.Edit
	for _, dir := range slices.Sorted(mapKeys(dirs)) {
		id, totals, err := object.EditTree(ctx, b, sink, object.ID{}, dirs[dir])
		must(w.t, err)
		top = append(top, object.Edit{Name: dir, Entry: &object.Entry{
			Name: dir, Ino: uint64(10 + len(top)), Mode: object.ModeDir | 0o755, Tree: id, Totals: totals,
		}})
	}
	root, totals, err := object.EditTree(ctx, b, sink, object.ID{}, top)
	must(w.t, err)
	c := &object.Commit{
		Root:    object.Entry{Ino: 1, Mode: object.ModeDir | 0o755, Tree: root, Totals: totals},
		NextIno: 100000, Author: "test", Time: time.Unix(1000, 0).UTC(), Message: message,
	}
	if !w.Tip.IsZero() {
		c.Parents = []object.ID{w.Tip}
	}
	w.Tip, err = sink.Put(ctx, object.KindCommit, c.Encode())
	must(w.t, err)
	must(w.t, b.Commit(ctx))
	return w.Tip
}

func mapKeys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (w *World) content(ctx context.Context, b remote.Batch, name string) object.Content {
	ed := object.NewListEditor(ctx, b, sinkOf{b}, object.Content{}, object.CutFixed)
	var ids []object.ID
	for i, p := range w.files[name] {
		var old object.ID
		if was := w.ids[name]; i < len(was) {
			old = was[i]
		}
		id, err := b.PutOver(ctx, object.KindChunk, p, old)
		must(w.t, err)
		must(w.t, ed.Add(object.Span{Size: uint64(len(p)), ID: id}))
		ids = append(ids, id)
	}
	w.ids[name] = ids
	c, err := ed.Finish()
	must(w.t, err)
	return c
}

// sinkOf makes an object.Sink of a batch.
type sinkOf struct{ remote.Batch }

func (s sinkOf) Put(ctx context.Context, kind object.Kind, plain []byte) (object.ID, error) {
	return s.PutOver(ctx, kind, plain, object.ID{})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind {
		t.Fatalf("error %v, want one of kind %v", err, kind)
	}
}

// Verify reads all that a commit needs, history included, and compares it with its ids. It returns the number of objects.
func Verify(t testing.TB, src object.Source, tip object.ID) int {
	t.Helper()
	n, err := verify(src, tip)
	if err != nil {
		t.Fatalf("verify commit %s: %v", tip.Short(), err)
	}
	return n
}

func verify(src object.Source, tip object.ID) (int, error) {
	seen := map[object.ID]bool{}
	stack := []remote.Want{{Kind: object.KindCommit, ID: tip}}
	for len(stack) > 0 {
		w := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if w.ID.IsZero() || seen[w.ID] {
			continue
		}
		seen[w.ID] = true
		b, err := src.Get(context.Background(), w.Kind, w.ID)
		if err != nil {
			return 0, err
		}
		if object.Sum(w.Kind, b) != w.ID {
			return 0, fmt.Errorf("%s %s has other bytes", w.Kind, w.ID.Short())
		}
		err = object.References(w.Kind, b, func(r object.Reference) { stack = append(stack, remote.Want{Kind: r.Kind, ID: r.ID}) })
		if err != nil {
			return 0, err
		}
	}
	return len(seen), nil
}
