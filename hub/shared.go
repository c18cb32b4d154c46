package hub

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/hubproto"
	"dm/remote/s3"
	"dm/store/pack"
)

// sharedEngine keeps everything in a bucket that any number of hubs use at a time, without knowing of each other:
//
//	dm-hub                    marks the bucket as a hub's, with the version of all this
//	accounts                  users and dots, changed by compare-and-swap
//	packs/NAME.pack           immutable, of all dots
//	dots/ID/index/NAME.idx    immutable: the members of a dot, and where they are
//	dots/ID/refs              its refs, changed by compare-and-swap
//
// So each dot is a remote of package bucket, with an index of its own over packs that all have in common. An object of
// another dot becomes a member by an entry in an index, and nothing is copied, unless it is stored as a delta of something
// that the dot must not show: then it is stored again.
//
// Members never cease to be members while the dot is there. So what a hub remembers of an index stays true, and it reads the
// list of index files again only where it does not know an object.
type sharedEngine struct {
	b        bucket.Bucket
	dir      string // caches and spooled packs
	codec    *pack.Codec
	accounts *accountsFile
	room     *semaphore.Weighted // bytes in memory of packs being taken in
	again    *semaphore.Weighted // one at a time stores what cannot be shared

	ctx    context.Context // of what goes on in the background; ends with the hub
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu   sync.Mutex
	dots map[string]*sharedDot
}

// sharedDot is what is remembered of a dot.
type sharedDot struct {
	id     string
	r      *bucket.Remote
	used   time.Time
	packs  int  // taken in since the last merge of index files
	tidies bool // a merge is running
}

const (
	hubMarker     = "dm-hub"
	hubMarkerLine = "dm hub 1\n"
	probeKey      = "dm-probe"
	dotsPrefix    = "dots/"

	// memoryForPacks bounds what packs take that are being looked at, in bytes. Until they have come whole they are on disk.
	memoryForPacks = hubproto.MaxPack + intakeSize + 16<<20
	// intakeSize is what looking at a pack takes besides it, in bytes: bases, the object at hand, and the pack that is stored.
	intakeSize = plainsSize + windowSize + 2*object.MaxSize + outSize
	// rememberedObjects bounds what is remembered of all dots but the one in use; an object takes some 60 bytes.
	rememberedObjects = 1 << 20
	// maxOthers is how many other dots are searched for what a sender has not sent.
	maxOthers = 32
	// loadParallel and loadRange bound the memory of one load.
	loadParallel = 2
	loadRange    = 1 << 20
	// tidyEvery is after how many packs of a dot its index files may be worth merging.
	tidyEvery = 32
	// removeWait is how long removing what was a dot's may take.
	removeWait = 10 * time.Minute
)

func openBucket(cfg Config) (bucket.Bucket, error) {
	c, err := s3.Parse(cfg.S3)
	if err != nil {
		return nil, err
	}
	if c.AccessKey == "" {
		return nil, errs.WithHint(errs.New(errs.Usage, "bad S3 address '%.200s': a hub needs an access key", cfg.S3),
			"write s3://ACCESSKEY@BUCKET/PREFIX")
	}
	c.SecretKey = cfg.S3Key
	return s3.Open(c)
}

func openShared(ctx context.Context, dir string, b bucket.Bucket) (*sharedEngine, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.New(errs.KindOf(err), "open hub %s: %w", dir, err)
	}
	if err := markHub(ctx, b); err != nil {
		return nil, err
	}
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		return nil, err
	}
	e := &sharedEngine{
		b: b, dir: dir, codec: codec, accounts: newAccountsFile(b), room: semaphore.NewWeighted(memoryForPacks),
		again: semaphore.NewWeighted(1), dots: map[string]*sharedDot{},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// markHub looks whether the bucket is a hub's, or empty so that it can become one, and whether it does what is needed.
func markHub(ctx context.Context, b bucket.Bucket) error {
	data, _, err := b.Get(ctx, hubMarker, 1<<10)
	marked := err == nil
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return fmt.Errorf("look into %s: %w", b, err)
	}
	if marked && string(data) != hubMarkerLine {
		return errs.WithHint(errs.New(errs.Usage, "%s has the hub format %.40q; this dm knows %q", b, data, hubMarkerLine), "install a newer dm")
	}
	if !marked {
		if err := mustBeEmpty(ctx, b); err != nil {
			return err
		}
	}
	if p, ok := b.(bucket.Prober); ok {
		if err := p.Probe(ctx, probeKey); err != nil {
			return err
		}
	}
	if marked {
		return nil
	}
	if err := b.Put(ctx, hubMarker, []byte(hubMarkerLine)); err != nil {
		return fmt.Errorf("make %s a hub's: %w", b, err)
	}
	return nil
}

func mustBeEmpty(ctx context.Context, b bucket.Bucket) error {
	found := ""
	err := b.List(ctx, "", func(key string) error {
		if key != probeKey && key != hubMarker {
			found = key
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look into %s: %w", b, err)
	}
	if found != "" {
		return errs.WithHint(errs.New(errs.Conflict, "%s is not empty and no hub's: it has %.80q and no %s", b, found, hubMarker),
			"choose an empty bucket, or a prefix of its own")
	}
	return nil
}

func (e *sharedEngine) close() error {
	e.cancel()
	e.work.Wait()
	e.codec.Close()
	return e.b.Close()
}

func (e *sharedEngine) healthy(ctx context.Context) error {
	return e.look(ctx, func(accounts) error { return nil })
}

func (e *sharedEngine) look(ctx context.Context, fn func(a accounts) error) error {
	return e.accounts.look(ctx, fn)
}

func (e *sharedEngine) change(ctx context.Context, fn func(a accounts) error) error {
	return e.accounts.change(ctx, fn)
}

// dot returns what is remembered of a dot, which may be nothing yet.
func (e *sharedEngine) dot(d *dotRecord) (*sharedDot, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sd, ok := e.dots[d.ID]
	if !ok {
		r, err := bucket.Open(&dotBucket{e.b, dotsPrefix + d.ID + "/"}, bucket.Options{
			CacheDir: filepath.Join(e.dir, "cache", d.ID), Codec: e.codec, Parallel: loadParallel, Range: loadRange,
		})
		if err != nil {
			return nil, err
		}
		sd = &sharedDot{id: d.ID, r: r}
		e.dots[d.ID] = sd
	}
	sd.used = time.Now()
	e.forget(sd)
	return sd, nil
}

// forget forgets the dots that were used longest ago, as long as too much is remembered. Who is using one goes on with it.
// Called with mu held.
func (e *sharedEngine) forget(keep *sharedDot) {
	total := 0
	var list []*sharedDot
	for _, sd := range e.dots {
		n, _ := sd.r.Len()
		total += n
		list = append(list, sd)
	}
	if total <= rememberedObjects {
		return
	}
	slices.SortFunc(list, func(a, b *sharedDot) int { return a.used.Compare(b.used) })
	for _, sd := range list {
		if n, _ := sd.r.Len(); total > rememberedObjects && sd != keep && !sd.tidies {
			total -= n
			delete(e.dots, sd.id)
		}
	}
}

// open returns what s shows, the dot itself first, which is nil where there is none.
func (e *sharedEngine) open(s *sight) (own *sharedDot, others []*sharedDot, err error) {
	if s.own != nil {
		if own, err = e.dot(s.own); err != nil {
			return nil, nil, err
		}
	}
	for _, d := range s.others[:min(len(s.others), maxOthers)] {
		sd, err := e.dot(d)
		if err != nil {
			return nil, nil, err
		}
		others = append(others, sd)
	}
	return own, others, nil
}

// refresh reads what other hubs have added to dots.
func refresh(ctx context.Context, dots ...*sharedDot) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(listParallel)
	for _, sd := range dots {
		group.Go(func() error { return sd.r.Refresh(ctx) })
	}
	return group.Wait()
}

// theDot is the name of a dot in the remote that is it alone.
const theDot = "hub/dot"

func (e *sharedEngine) refs(ctx context.Context, d *dotRecord) (map[string]object.ID, error) {
	sd, err := e.dot(d)
	if err != nil {
		return nil, err
	}
	in, err := sd.r.Dot(theDot)
	if err != nil {
		return nil, err
	}
	return in.Refs(ctx)
}

func (e *sharedEngine) move(ctx context.Context, s *sight, ref string, old, new object.ID) error {
	own, others, err := e.open(s)
	if err != nil {
		return err
	}
	if !new.IsZero() {
		add := own.r.Add()
		if _, err := e.adopt(ctx, add, own, others, map[object.ID]object.Kind{new: object.KindCommit}); err != nil {
			return err
		}
		if err := add.Commit(ctx); err != nil {
			return err
		}
	}
	if err := s.still(ctx); err != nil {
		return err
	}
	in, err := own.r.Dot(theDot)
	if err != nil {
		return err
	}
	return in.Move(ctx, ref, old, new)
}

func (e *sharedEngine) missing(ctx context.Context, s *sight, ids []object.ID) ([]object.ID, error) {
	own, others, err := e.open(s)
	if err != nil {
		return nil, err
	}
	dots := others
	if own != nil {
		dots = append([]*sharedDot{own}, others...)
	}
	unknown := func(ids []object.ID) (list []object.ID) {
		for _, id := range ids {
			if !slices.ContainsFunc(dots, func(sd *sharedDot) bool { _, ok := sd.r.Kind(id); return ok }) {
				list = append(list, id)
			}
		}
		return list
	}
	rest := unknown(ids)
	if len(rest) == 0 {
		return nil, nil
	}
	if err := refresh(ctx, dots...); err != nil {
		return nil, err
	}
	return unknown(rest), nil
}

func (e *sharedEngine) load(ctx context.Context, d *dotRecord, req *hubproto.LoadRequest, out *pack.Writer) error {
	sd, err := e.dot(d)
	if err != nil {
		return err
	}
	in, err := sd.r.Dot(theDot)
	if err != nil {
		return err
	}
	m := remote.Request{Haves: req.Haves}
	for _, w := range req.Wants {
		m.Wants = append(m.Wants, remote.Want{Kind: w.Kind, ID: w.ID})
	}
	return in.Load(ctx, m, out.Write)
}

// removed removes what a dot had in the bucket but its packs, which others may have in common. Where that is cut short,
// files are left that nobody reads.
func (e *sharedEngine) removed(d *dotRecord) {
	e.mu.Lock()
	delete(e.dots, d.ID)
	e.mu.Unlock()
	os.RemoveAll(filepath.Join(e.dir, "cache", d.ID))
	e.work.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, removeWait)
		defer cancel()
		var keys []string
		err := e.b.List(ctx, dotsPrefix+d.ID+"/index/", func(key string) error {
			keys = append(keys, key)
			return nil
		})
		for _, key := range keys {
			if err == nil {
				err = e.b.Remove(ctx, key)
			}
		}
	})
}

// tidy merges the index files of a dot now and then, in the background.
func (e *sharedEngine) tidy(sd *sharedDot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if sd.packs++; sd.packs < tidyEvery || sd.tidies || e.ctx.Err() != nil {
		return
	}
	sd.packs, sd.tidies = 0, true
	e.work.Go(func() {
		sd.r.Tidy(e.ctx) // where it fails, the next one does it
		e.mu.Lock()
		defer e.mu.Unlock()
		sd.tidies = false
	})
}

// dotBucket shows one dot of a hub as a bucket that has nothing else.
type dotBucket struct {
	b      bucket.Bucket
	prefix string // of the dot's keys
}

const (
	packKeys  = "packs/"
	refsKey   = "refs/" + theDot
	markerKey = "dm-remote"
	marker    = "dm remote 1\n"
)

func (d *dotBucket) key(key string) string {
	switch {
	case strings.HasPrefix(key, packKeys):
		return key
	case key == refsKey:
		return d.prefix + "refs"
	}
	return d.prefix + key
}

func (d *dotBucket) Get(ctx context.Context, key string, limit int64) ([]byte, string, error) {
	if key == markerKey {
		return []byte(marker), "", nil // the hub's own marker was looked at
	}
	return d.b.Get(ctx, d.key(key), limit)
}

func (d *dotBucket) GetRange(ctx context.Context, key string, off, n int64) ([]byte, error) {
	return d.b.GetRange(ctx, d.key(key), off, n)
}

func (d *dotBucket) Put(ctx context.Context, key string, data []byte) error {
	return d.b.Put(ctx, d.key(key), data)
}

func (d *dotBucket) Swap(ctx context.Context, key string, data []byte, tag string) error {
	return d.b.Swap(ctx, d.key(key), data, tag)
}

func (d *dotBucket) Remove(ctx context.Context, key string) error { return d.b.Remove(ctx, d.key(key)) }

func (d *dotBucket) List(ctx context.Context, prefix string, fn func(key string) error) error {
	return d.b.List(ctx, d.prefix+prefix, func(key string) error { return fn(strings.TrimPrefix(key, d.prefix)) })
}

func (d *dotBucket) String() string { return d.b.String() }

// Close does nothing: the bucket is the hub's.
func (d *dotBucket) Close() error { return nil }
