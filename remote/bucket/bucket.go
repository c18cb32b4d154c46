// Package bucket is a remote without a server: packs, indexes and refs as files in a bucket, a place that stores named
// bytes. What is where, byte by byte, and why many machines may use one bucket at a time, is in docs/format/remote.md:
//
//	dm-remote              marks the bucket as a remote, with the version of all this
//	packs/NAME.pack        immutable, named by the hash of its bytes
//	index/NAME.idx         immutable, named by the hash of its bytes: what is where in which packs
//	refs/NAMESPACE/DOT     all refs of a dot, moved by compare-and-swap
//
// The order of writes, each needing the one before to be durable:
//
//	PackBeforeIndex    an index must not be written before the packs that it tells of
//	IndexBeforeRef     a ref must not move before the index of all packs that hold what it needs
//	MergeBeforeRemove  an index must not be removed before one is written that tells all that it tells
//
// Readers go the other way: ref, index, pack. What a machine that was killed leaves behind is a pack that no index knows, or
// files that say the same twice; both do no harm.
package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store/pack"
)

// Bucket stores named bytes. Keys are relative paths with slashes, of letters, digits, '-', '_' and '.'. It is safe for
// concurrent use by many goroutines and machines; all that returned is durable and seen by everyone.
type Bucket interface {
	// Get returns all of a file, at most limit bytes, and a tag that stands for this content: NotFound.
	Get(ctx context.Context, key string, limit int64) (data []byte, tag string, err error)
	// GetRange returns n bytes from offset off on: NotFound, or Damaged where the file is shorter.
	GetRange(ctx context.Context, key string, off, n int64) ([]byte, error)
	// Put stores a file whose key nobody uses for other content. Nobody ever sees a part of it.
	Put(ctx context.Context, key string, data []byte) error
	// Swap replaces a file if its tag still is the one given, or makes it if tag is "" and there is none; otherwise it
	// fails with Conflict and changes nothing. An error of another kind leaves open whether it changed.
	Swap(ctx context.Context, key string, data []byte, tag string) error
	// Remove removes a file that was Put. If there is none, that is no error.
	Remove(ctx context.Context, key string) error
	// List calls fn for the key of each file whose key begins with prefix, in any order. Files that are written or removed
	// meanwhile may be listed or not.
	List(ctx context.Context, prefix string, fn func(key string) error) error
	// String returns the place as the user writes it.
	String() string
	Close() error
}

// Newer is an optional power of a Bucket: it reads a file only if it has changed.
type Newer interface {
	// GetNewer is Get, but where the file's tag still is the one given it returns that tag and no data.
	GetNewer(ctx context.Context, key, tag string, limit int64) (data []byte, now string, err error)
}

// Prober is an optional power of a Bucket: it finds out whether Swap does what it says.
type Prober interface {
	Probe(ctx context.Context, key string) error
}

const (
	markerKey   = "dm-remote"
	probeKey    = "dm-probe"
	packPrefix  = "packs/"
	indexPrefix = "index/"
	refPrefix   = "refs/"

	markerLine = "dm remote %d\n"
	version    = 1
)

// Options tune a remote in a bucket.
type Options struct {
	CacheDir string      // where indexes of this remote are kept between runs; empty: nowhere
	Codec    *pack.Codec // to be shared with others; nil: one of its own
	Parallel int         // requests of one Load at a time; 0: 8
	Range    int64       // bytes that one of them asks for, if its first record has not more; 0: 8 MiB
}

// Remote is a remote in a bucket.
type Remote struct {
	b     Bucket
	opts  Options
	codec *pack.Codec

	mu      sync.Mutex // held while marker or index are read
	marked  bool       // the marker is there
	probed  bool
	refresh sync.RWMutex // guards index
	index   *table
}

// Open returns the remote in a bucket, which it closes with it. It does not look into it yet.
func Open(b Bucket, opts Options) (*Remote, error) {
	r := &Remote{b: b, opts: opts, codec: opts.Codec, index: newTable()}
	r.opts.Parallel = cmp.Or(opts.Parallel, parallel)
	r.opts.Range = cmp.Or(opts.Range, maxRange)
	if r.codec == nil {
		var err error
		if r.codec, err = pack.NewCodec(pack.Fast); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Close closes the bucket.
func (r *Remote) Close() error {
	if r.opts.Codec == nil {
		r.codec.Close()
	}
	return r.b.Close()
}

// String returns the place as the user writes it.
func (r *Remote) String() string { return r.b.String() }

// Check looks whether the bucket is a remote, or empty so that it can become one.
func (r *Remote) Check(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open(ctx)
}

// open reads the marker. Called with mu held.
func (r *Remote) open(ctx context.Context) error {
	if r.marked {
		return nil
	}
	data, _, err := r.b.Get(ctx, markerKey, 1<<10)
	if errs.KindOf(err) == errs.NotFound {
		return r.mustBeEmpty(ctx)
	}
	if err != nil {
		return fmt.Errorf("look into %s: %w", r.b, err)
	}
	var v int
	if n, err := fmt.Sscanf(string(data), markerLine, &v); n != 1 || err != nil || v < 1 {
		return errs.New(errs.Damaged, "%s: the file %s is damaged", r.b, markerKey)
	}
	if v > version {
		return errs.WithHint(errs.New(errs.Usage, "%s has format %d; this dm knows %d", r.b, v, version), "install a newer dm")
	}
	r.marked = true
	return nil
}

var errStop = errors.New("stop")

func (r *Remote) mustBeEmpty(ctx context.Context) error {
	found := ""
	err := r.b.List(ctx, "", func(key string) error {
		if strings.HasPrefix(key, probeKey) {
			return nil
		}
		found = key
		return errStop
	})
	if found != "" {
		return errs.WithHint(errs.New(errs.Conflict, "%s is not empty and no remote: it has %.80q and no %s", r.b, found, markerKey),
			"choose an empty place")
	}
	if err != nil {
		return fmt.Errorf("look into %s: %w", r.b, err)
	}
	return nil
}

// create makes the bucket a remote before the first write to it, and finds out whether it can be one.
func (r *Remote) create(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(ctx); err != nil {
		return err
	}
	if p, ok := r.b.(Prober); ok && !r.probed {
		if err := p.Probe(ctx, probeKey); err != nil {
			return err
		}
	}
	r.probed = true
	if r.marked {
		return nil
	}
	if err := r.b.Put(ctx, markerKey, fmt.Appendf(nil, markerLine, version)); err != nil {
		return fmt.Errorf("make %s a remote: %w", r.b, err)
	}
	r.marked = true
	return nil
}

// Dots lists the dots that have refs.
func (r *Remote) Dots(ctx context.Context) ([]remote.DotInfo, error) {
	if err := r.Check(ctx); err != nil {
		return nil, err
	}
	var names []string
	err := r.b.List(ctx, refPrefix, func(key string) error {
		if name := strings.TrimPrefix(key, refPrefix); remote.CheckDot(name) == nil {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the dots of %s: %w", r.b, err)
	}
	slices.Sort(names)
	var list []remote.DotInfo
	for _, name := range slices.Compact(names) {
		refs, _, err := r.readRefs(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(refs) > 0 {
			list = append(list, remote.DotInfo{Name: name})
		}
	}
	return list, nil
}

// Delete removes all refs of a dot. Its objects stay.
func (r *Remote) Delete(ctx context.Context, name string) error {
	if err := remote.CheckDot(name); err != nil {
		return err
	}
	for range maxRetries {
		refs, tag, err := r.readRefs(ctx, name)
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return errs.New(errs.NotFound, "%s has no dot %s", r.b, name)
		}
		if err := r.b.Swap(ctx, refPrefix+name, encodeRefs(nil), tag); errs.KindOf(err) != errs.Conflict || err == nil {
			return err
		}
	}
	return busy(name)
}

// Dot returns a dot.
func (r *Remote) Dot(name string) (remote.Dot, error) {
	if err := remote.CheckDot(name); err != nil {
		return nil, err
	}
	return &dot{r: r, name: name}, nil
}

// dot is one dot of a remote.
type dot struct {
	r    *Remote
	name string

	mu    sync.Mutex
	fresh bool // the index was read since this dot was opened
}

// update reads the index, unless it was read since this dot was opened.
func (d *dot) update(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fresh {
		return nil
	}
	if err := d.r.readIndex(ctx); err != nil {
		return err
	}
	d.fresh = true
	return nil
}

// Missing says what no index tells of.
func (d *dot) Missing(ctx context.Context, ids []object.ID) ([]object.ID, error) {
	if err := d.update(ctx); err != nil {
		return nil, err
	}
	d.r.refresh.RLock()
	defer d.r.refresh.RUnlock()
	var missing []object.ID
	for _, id := range ids {
		if _, ok := d.r.index.find(id); !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// Depth returns how many records it takes to read an object beyond its own.
func (d *dot) Depth(id object.ID) (int, bool) {
	d.r.refresh.RLock()
	defer d.r.refresh.RUnlock()
	l, ok := d.r.index.find(id)
	if !ok {
		return 0, false
	}
	return int(l.depth), true
}

// Store writes a pack and then its index.
func (d *dot) Store(ctx context.Context, p *remote.Pack) error {
	a := d.r.Add()
	if err := a.Pack(ctx, p); err != nil {
		return err
	}
	return a.Commit(ctx)
}

func packKey(name object.ID) string  { return packPrefix + name.String() + ".pack" }
func indexKey(name object.ID) string { return indexPrefix + name.String() + ".idx" }
