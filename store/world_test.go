package store

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"time"

	"dm/chunker"
	"dm/object"
)

// world is a small application's state, whose files tests change at random and commit.
type world struct {
	files map[string][]byte
	ids   map[string][]object.ID // of the chunks, for deltas
}

func newWorld() *world { return &world{files: map[string][]byte{}, ids: map[string][]object.ID{}} }

// write changes a file: size bytes of content from seed, or, if it is there, a few bytes in it.
func (w *world) write(name string, seed uint64, size int) {
	old, ok := w.files[name]
	if !ok {
		w.files[name] = page(seed, size)
		return
	}
	b := bytes.Clone(old)
	if len(b) > 100 {
		copy(b[int(seed%uint64(len(b)-50)):], random(seed, 40))
	}
	w.files[name] = b
}

// store puts all files, lists, trees and a commit into a batch.
func (w *world) store(ctx context.Context, b *Batch, parents []object.ID, message string) (object.ID, error) {
	names := make([]string, 0, len(w.files))
	for name := range w.files {
		names = append(names, name)
	}
	sort.Strings(names)
	dirs := map[string][]object.Edit{}
	for i, name := range names {
		content, err := w.content(ctx, b, name)
		if err != nil {
			return object.ID{}, err
		}
		dir := name[:1]
		dirs[dir] = append(dirs[dir], object.Edit{Name: name, Entry: &object.Entry{
			Name: name, Ino: uint64(100 + i),
			Mode: object.ModeRegular | 0o644, Content: content,
		}})
	}
	var top []object.Edit
	for dir, edits := range dirs {
		id, totals, err := object.EditTree(ctx, b, b, object.ID{}, edits)
		if err != nil {
			return object.ID{}, err
		}
		top = append(top, object.Edit{Name: dir, Entry: &object.Entry{
			Name: dir, Ino: uint64(dir[0]),
			Mode: object.ModeDir | 0o755, Tree: id, Totals: totals,
		}})
	}
	sort.Slice(top, func(i, j int) bool { return top[i].Name < top[j].Name })
	root, totals, err := object.EditTree(ctx, b, b, object.ID{}, top)
	if err != nil {
		return object.ID{}, err
	}
	c := &object.Commit{
		Root:    object.Entry{Ino: 1, Mode: object.ModeDir | 0o755, Tree: root, Totals: totals},
		NextIno: 10000, Parents: parents, Author: "test", Time: time.Unix(1, 0).UTC(), Message: message,
	}
	return b.Put(ctx, object.KindCommit, c.Encode())
}

func (w *world) content(ctx context.Context, b *Batch, name string) (object.Content, error) {
	data, old := w.files[name], w.ids[name]
	ed := object.NewListEditor(ctx, b, b, object.Content{}, object.CutFixed)
	var ids []object.ID
	for i := 0; len(data) > 0; i++ {
		n := chunker.Fixed(data)
		var base object.ID
		if i < len(old) {
			base = old[i]
		}
		id, err := b.PutOver(ctx, object.KindChunk, data[:n], base)
		if err != nil {
			return object.Content{}, err
		}
		if err := ed.Add(object.Span{Size: uint64(n), ID: id}); err != nil {
			return object.Content{}, err
		}
		ids = append(ids, id)
		data = data[n:]
	}
	w.ids[name] = ids
	return ed.Finish()
}

// reach adds id and everything below it to set, reading each object.
func reach(ctx context.Context, src object.Source, kind object.Kind, id object.ID, set map[object.ID]object.Kind) error {
	if _, ok := set[id]; ok {
		return nil
	}
	plain, err := src.Get(ctx, kind, id)
	if err != nil {
		return fmt.Errorf("read %s %s: %w", kind, id.Short(), err)
	}
	if object.Sum(kind, plain) != id {
		return fmt.Errorf("%s %s has other bytes", kind, id.Short())
	}
	set[id] = kind
	var next []object.Reference
	if err := object.References(kind, plain, func(r object.Reference) { next = append(next, r) }); err != nil {
		return err
	}
	for _, r := range next {
		if err := reach(ctx, src, r.Kind, r.ID, set); err != nil {
			return err
		}
	}
	return nil
}
