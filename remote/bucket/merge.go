package bucket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// readIndex reads the index files that are new since the last time. Files that a merge removed meanwhile are in one that
// comes up when the list is read again.
func (r *Remote) readIndex(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(ctx); err != nil {
		return err
	}
	for range maxRetries {
		names, err := r.listIndex(ctx)
		if err != nil {
			return err
		}
		gone, err := r.readFiles(ctx, names)
		if err != nil {
			return err
		}
		if !gone {
			r.forgetAllBut(names)
			return nil
		}
	}
	return busy("the index")
}

func (r *Remote) listIndex(ctx context.Context) ([]object.ID, error) {
	var names []object.ID
	err := r.b.List(ctx, indexPrefix, func(key string) error {
		hex, ok := strings.CutSuffix(strings.TrimPrefix(key, indexPrefix), ".idx")
		if !ok {
			return nil
		}
		if name, err := object.ParseID(hex); err == nil {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the indexes of %s: %w", r.b, err)
	}
	return names, nil
}

// readFiles reads index files. gone says that one of them is not there any more.
func (r *Remote) readFiles(ctx context.Context, names []object.ID) (gone bool, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	var mu sync.Mutex
	var files []read
	for _, name := range names {
		r.refresh.RLock()
		_, known := r.index.files[name]
		r.refresh.RUnlock()
		if known {
			continue
		}
		group.Go(func() error {
			f, err := r.readFile(ctx, name)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			files = append(files, read{name, f})
			return nil
		})
	}
	err = group.Wait()
	if len(files) > 0 {
		r.refresh.Lock()
		r.index.add(files...)
		r.refresh.Unlock()
	}
	if errors.Is(err, errGone) {
		return true, nil
	}
	return false, err
}

var errGone = errors.New("index file is gone")

// readFile reads an index file, from the cache if it is there and whole.
func (r *Remote) readFile(ctx context.Context, name object.ID) (*file, error) {
	if r.opts.CacheDir != "" {
		if data, err := os.ReadFile(r.cached(name)); err == nil && remote.PackName(data) == name {
			return decodeIndex(data)
		}
	}
	data, _, err := r.b.Get(ctx, indexKey(name), maxIndex)
	if errs.KindOf(err) == errs.NotFound {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", name.Short(), err)
	}
	if remote.PackName(data) != name {
		return nil, errs.New(errs.Damaged, "index %s of %s is damaged: its bytes have another name", name.Short(), r.b)
	}
	f, err := decodeIndex(data)
	if err == nil {
		r.keep(name, data)
	}
	return f, err
}

func (r *Remote) cached(name object.ID) string {
	return filepath.Join(r.opts.CacheDir, name.String()+".idx")
}

// keep puts an index file into the cache. Where that fails it is read again.
func (r *Remote) keep(name object.ID, data []byte) {
	if r.opts.CacheDir == "" {
		return
	}
	if os.MkdirAll(r.opts.CacheDir, 0o700) == nil {
		durable.WriteFile(r.cached(name), data, 0o600)
	}
}

// forgetAllBut removes files from the cache that the remote does not have any more.
func (r *Remote) forgetAllBut(names []object.ID) {
	if r.opts.CacheDir == "" {
		return
	}
	entries, err := os.ReadDir(r.opts.CacheDir)
	if err != nil {
		return
	}
	listed := make(map[string]bool, len(names))
	for _, name := range names {
		listed[name.String()+".idx"] = true
	}
	for _, e := range entries {
		if !listed[e.Name()] && strings.HasSuffix(e.Name(), ".idx") {
			os.Remove(filepath.Join(r.opts.CacheDir, e.Name()))
		}
	}
}

const (
	// mergeFrom is how many index files make a merge worth it.
	mergeFrom = 64
	// mergeMax is how many entries a merged file has at most: the files beyond it are large enough to be left alone.
	mergeMax = 1 << 20
)

// Tidy merges index files where there are many: each push adds some, and every reader reads all. It may run beside
// everything else on any machine, and be cut short anywhere.
func (r *Remote) Tidy(ctx context.Context) error {
	if err := r.readIndex(ctx); err != nil {
		return err
	}
	names, err := r.listIndex(ctx)
	if err != nil || len(names) < mergeFrom {
		return err
	}
	var small []read
	var old []object.ID
	total := 0
	for _, name := range names {
		f, err := r.readFile(ctx, name)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return err
		}
		if len(f.locs) > mergeMax/4 || total+len(f.locs) > mergeMax {
			continue
		}
		total += len(f.locs)
		small = append(small, read{name, f})
		old = append(old, name)
	}
	if len(old) < mergeFrom/2 {
		return nil
	}
	merged := newTable()
	merged.add(small...)
	data := merged.encode()
	name := remote.PackName(data)
	if err := r.b.Put(ctx, indexKey(name), data); err != nil {
		return fmt.Errorf("write the merged index %s: %w", name.Short(), err)
	}
	for _, o := range old {
		if o == name {
			continue
		}
		if err := r.b.Remove(ctx, indexKey(o)); err != nil {
			return fmt.Errorf("remove the merged index %s: %w", o.Short(), err)
		}
	}
	return nil
}
