package dot

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dm/chunker"
	"dm/internal/background"
	"dm/object"
	"dm/workcopy"
)

// windowSize is how much of a file is read at once, in bytes. Chunks are slices of a window, so it bounds copying; the
// number of windows bounds the memory of a commit whatever it is of.
const windowSize = 1 << 20

// frozenFile is a changed file of a snapshot: *workcopy.File.
type frozenFile interface {
	Path() string
	Base() object.Content
	Size() uint64
	Dirty() []workcopy.Range
	ReadAt(p []byte, off int64) (int, error)
	NextData(off uint64) (start, end uint64)
	SetContent(c object.Content)
}

// chunkSink stores chunks: *store.Batch. PutOver says what stood at the chunk's place before.
type chunkSink interface {
	object.Sink
	PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error)
}

// chunking turns the changed ranges of frozen files into chunks and lists. Per file one goroutine plans: it reads, cuts
// and says which old chunks stay. All files' chunks go to one pool of workers, which hash, compress and store. A second
// goroutine per file puts the results into the file's list, in order. So one large file keeps all cores as busy as many
// small ones do.
type chunking struct {
	src      object.Source
	sink     chunkSink
	jobs     chan job
	windows  chan *window
	cores    chan struct{} // holds one for each goroutine that computes
	zeroStep uint64        // length of a gear chunk of zeros
	read     atomic.Uint64
	meter    *meter
}

// job is a chunk on its way to the store.
type job struct {
	data []byte
	in   *window
	old  object.ID
	done chan<- stored
}

type stored struct {
	id  object.ID
	err error
}

// window is a piece of a file in memory, in use while anyone holds it.
type window struct {
	buf  []byte
	refs atomic.Int32
}

// chunkFiles gives each file its new content and returns the number of bytes it read for that.
func chunkFiles[F frozenFile](ctx context.Context, src object.Source, sink chunkSink, files []F, progress func(Progress)) (uint64, error) {
	workers := background.Workers()
	planners := min(workers, max(len(files), 1))
	c := &chunking{
		// Some jobs wait, so that a worker that is done needs not.
		src: src, sink: sink, jobs: make(chan job, 2*workers), meter: newMeter(progress),
		// Each planner that waits for a window holds one at most, so with more windows than planners some window is
		// free or with a worker, and a worker always finishes.
		windows:  make(chan *window, planners+2*workers),
		cores:    make(chan struct{}, workers),
		zeroStep: uint64(chunker.Gear(make([]byte, chunker.Max))),
	}
	for range cap(c.windows) {
		c.windows <- &window{} // its memory comes with its first use
	}
	for _, f := range files {
		c.meter.expect(rangesLen(f.Dirty()))
	}
	g, ctx := errgroup.WithContext(ctx)
	var planning sync.WaitGroup
	queue := make(chan F)
	g.Go(func() error {
		defer close(queue)
		for _, f := range files {
			select {
			case queue <- f:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range planners {
		planning.Add(1)
		g.Go(func() error {
			defer planning.Done()
			background.Thread()
			for f := range queue {
				if err := c.file(ctx, f); err != nil {
					return fmt.Errorf("chunk %s: %w", f.Path(), err)
				}
			}
			return nil
		})
	}
	for range workers {
		g.Go(func() error {
			background.Thread()
			c.work(ctx)
			return nil
		})
	}
	go func() {
		planning.Wait()
		close(c.jobs)
	}()
	err := g.Wait()
	c.meter.flush()
	return c.read.Load(), err
}

// work stores chunks until there are no more. An error goes to whoever waits for the chunk.
func (c *chunking) work(ctx context.Context) {
	for j := range c.jobs {
		id, err := c.store(ctx, j.data, j.old)
		j.done <- stored{id, err}
		c.release(j.in)
	}
}

func (c *chunking) store(ctx context.Context, data []byte, old object.ID) (object.ID, error) {
	c.cores <- struct{}{}
	defer func() { <-c.cores }()
	switch {
	case chunker.Zero(data):
		return object.ID{}, nil
	case old.IsZero():
		return c.sink.Put(ctx, object.KindChunk, data)
	}
	return c.sink.PutOver(ctx, object.KindChunk, data, old)
}

// window waits for a window of memory, which the caller then holds.
func (c *chunking) window(ctx context.Context) (*window, error) {
	select {
	case w := <-c.windows:
		w.refs.Store(1)
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *chunking) release(w *window) {
	if w.refs.Add(-1) == 0 {
		c.windows <- w
	}
}

// file chunks what changed in one file.
func (c *chunking) file(ctx context.Context, f frozenFile) error {
	content, err := c.content(ctx, f)
	if err != nil {
		return err
	}
	f.SetContent(content)
	c.meter.file()
	return nil
}

func (c *chunking) content(ctx context.Context, f frozenFile) (object.Content, error) {
	switch size := f.Size(); {
	case size == 0:
		return object.Content{}, ctx.Err()
	case size <= chunker.Min:
		return c.small(ctx, f)
	}
	return c.large(ctx, f)
}

// small stores a file that is one chunk however it is cut.
func (c *chunking) small(ctx context.Context, f frozenFile) (object.Content, error) {
	w, err := c.window(ctx)
	if err != nil {
		return object.Content{}, err
	}
	defer c.release(w)
	size := f.Size()
	buf := w.room(int(size))
	if err := c.readAt(f, buf, 0); err != nil {
		return object.Content{}, err
	}
	var old object.ID
	if f.Base().Depth == 0 {
		old = f.Base().Root
	}
	id, err := c.store(ctx, buf, old)
	c.meter.bytes(rangesLen(f.Dirty()))
	return object.Content{Size: size, Root: id}, err
}

func (w *window) room(n int) []byte {
	if cap(w.buf) < n {
		w.buf = make([]byte, max(n, windowSize))
	}
	return w.buf[:n]
}

// readAt fills buf from a frozen file.
func (c *chunking) readAt(f frozenFile, buf []byte, off uint64) error {
	n, err := f.ReadAt(buf, int64(off))
	c.read.Add(uint64(n))
	switch {
	case n == len(buf):
		return nil
	case err == nil || err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(buf), off, err)
}

// cutOf keeps the way the file was cut before. A new file that looks like pages of a database is cut at fixed places,
// because such files are overwritten in place; others where their content says.
func cutOf(ctx context.Context, src object.Source, f frozenFile) (object.Cut, error) {
	cut, ok, err := object.CutOf(ctx, src, f.Base())
	if ok || err != nil {
		return cut, err
	}
	if f.Size() >= chunker.Block && f.Size()%workcopy.BlockSize == 0 {
		return object.CutFixed, nil
	}
	return object.CutGear, nil
}

func rangesLen(ranges []workcopy.Range) (n uint64) {
	for _, r := range ranges {
		n += r.Len
	}
	return n
}

// meterEvery is how often progress is reported.
const meterEvery = 100 * time.Millisecond

// meter counts progress and reports it at intervals. It is safe for concurrent use; report runs once at a time.
type meter struct {
	mu     sync.Mutex
	report func(Progress)
	now    Progress
	last   time.Time
}

func newMeter(report func(Progress)) *meter { return &meter{report: report} }

func (m *meter) expect(bytes uint64) {
	m.now.FilesTotal++
	m.now.BytesTotal += bytes
}

func (m *meter) bytes(n uint64) { m.add(0, n) }
func (m *meter) file()          { m.add(1, 0) }

func (m *meter) add(files, bytes uint64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.FilesDone += files
	m.now.BytesDone += bytes
	if t := time.Now(); t.Sub(m.last) >= meterEvery {
		m.last = t
		m.report(m.now)
	}
}

func (m *meter) flush() {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(m.now)
}
