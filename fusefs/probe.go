package fusefs

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dm/workcopy"
)

// probe is a volume of a few files of fixed size in memory, with a gate and a cut as a working copy has them. The
// self-test mounts it; it knows as much of a filesystem as that needs.
type probe struct {
	mu     sync.Mutex
	files  []probeFile
	gate   chan struct{} // nil: open; guarded by mu
	kernel workcopy.Kernel

	cached, direct atomic.Int64 // WRITEs from the kernel's cache, and others
	deaf           bool         // to questions for extended attributes: the kernel does not ask again
	attrs, caps    atomic.Int64 // questions for attributes of files, and for the one before the first write(2)
}

// probeFile is a file of the probe; its node follows the root's.
type probeFile struct {
	data []byte
	size int
	mode uint32
}

func newProbe(files, size int) *probe {
	p := &probe{files: make([]probeFile, files)}
	for i := range p.files {
		p.files[i] = probeFile{data: make([]byte, size), mode: syscall.S_IFREG | 0o600}
	}
	return p
}

func (p *probe) lockGate() {
	p.mu.Lock()
	for p.gate != nil {
		ch := p.gate
		p.mu.Unlock()
		<-ch
		p.mu.Lock()
	}
}

// cut returns the content of all files at one instant, and for how long the gate was closed.
func (p *probe) cut(ctx context.Context) (content [][]byte, pause time.Duration, err error) {
	if err := p.kernel.Flush(ctx); err != nil {
		return nil, 0, err
	}
	ch := make(chan struct{})
	p.mu.Lock()
	p.gate = ch
	p.mu.Unlock()
	start := time.Now()
	defer func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(ch)
		pause = time.Since(start)
	}()
	if err := p.kernel.Recall(ctx); err != nil {
		return nil, 0, err
	}
	if err := p.kernel.FlushRecent(ctx); err != nil {
		return nil, 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.files {
		content = append(content, append([]byte(nil), p.files[i].data[:p.files[i].size]...))
	}
	return content, 0, nil
}

func (p *probe) file(id workcopy.NodeID) (*probeFile, error) {
	if i := int64(id) - 2; i >= 0 && i < int64(len(p.files)) {
		return &p.files[i], nil
	}
	return nil, syscall.ESTALE
}

func (p *probe) attr(id workcopy.NodeID) (workcopy.Attr, error) {
	if id == workcopy.RootID {
		return workcopy.Attr{Ino: uint64(id), Mode: syscall.S_IFDIR | 0o700, Nlink: 2}, nil
	}
	f, err := p.file(id)
	if err != nil {
		return workcopy.Attr{}, err
	}
	return workcopy.Attr{Ino: uint64(id), Mode: f.mode, Nlink: 1, Size: uint64(f.size)}, nil
}

func (p *probe) Lookup(_ context.Context, dir workcopy.NodeID, name string) (workcopy.NodeID, workcopy.Attr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := dir
	if name != "." && name != ".." {
		i, err := strconv.Atoi(name)
		if err != nil || i < 0 || i >= len(p.files) {
			return 0, workcopy.Attr{}, syscall.ENOENT
		}
		id = workcopy.NodeID(i + 2)
	}
	a, err := p.attr(id)
	return id, a, err
}

func (p *probe) Forget(workcopy.NodeID, uint64) {}

func (p *probe) GetAttr(_ context.Context, id workcopy.NodeID) (workcopy.Attr, error) {
	p.lockGate()
	defer p.mu.Unlock()
	if id != workcopy.RootID {
		p.attrs.Add(1)
	}
	return p.attr(id)
}

func (p *probe) SetAttr(_ context.Context, id workcopy.NodeID, ch workcopy.AttrChange) (workcopy.Attr, error) {
	if ch.Late || ch.Pass {
		p.mu.Lock()
	} else {
		p.lockGate()
	}
	defer p.mu.Unlock()
	f, err := p.file(id)
	if err != nil {
		return workcopy.Attr{}, err
	}
	if ch.Size != nil {
		if *ch.Size > uint64(len(f.data)) {
			return workcopy.Attr{}, syscall.EFBIG
		}
		f.size = int(*ch.Size)
		clear(f.data[f.size:])
	}
	return p.attr(id)
}

func (p *probe) Read(_ context.Context, id workcopy.NodeID, b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.file(id)
	if err != nil || off >= int64(f.size) {
		return 0, err
	}
	return copy(b, f.data[off:f.size]), nil
}

func (p *probe) Write(_ context.Context, id workcopy.NodeID, data [][]byte, off int64, writeback, _ bool) (n int, err error) {
	if writeback {
		p.cached.Add(1)
		p.mu.Lock()
	} else {
		p.direct.Add(1)
		p.lockGate()
	}
	defer p.mu.Unlock()
	f, err := p.file(id)
	if err != nil {
		return 0, err
	}
	for _, d := range data {
		if off+int64(n+len(d)) > int64(len(f.data)) {
			return n, syscall.EFBIG
		}
		n += copy(f.data[off+int64(n):], d)
	}
	f.size = max(f.size, int(off)+n)
	return n, nil
}

func (p *probe) Fsync(context.Context, workcopy.NodeID, bool) error { return nil }

func (p *probe) Seek(_ context.Context, id workcopy.NodeID, off int64, what workcopy.RangeKind) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.file(id)
	switch {
	case err != nil:
		return 0, err
	case off >= int64(f.size):
		return 0, syscall.ENXIO
	case what == workcopy.Hole:
		return int64(f.size), nil
	}
	return off, nil
}

func (p *probe) ReadDir(_ context.Context, _ workcopy.NodeID, after uint64, fn func(workcopy.DirEntry) bool) error {
	const first = 16
	for i := range p.files {
		e := workcopy.DirEntry{Name: strconv.Itoa(i), Cookie: uint64(first + i), Ino: uint64(i + 2), Type: syscall.S_IFREG}
		if e.Cookie > after && !fn(e) {
			return nil
		}
	}
	return nil
}

func (p *probe) StatFS(context.Context) (workcopy.StatFS, error) {
	return workcopy.StatFS{BlockSize: workcopy.BlockSize, NameLen: 255}, nil
}

func (p *probe) Attach(k workcopy.Kernel) (detach func()) {
	p.kernel = k
	return func() {}
}

// What follows no self-test does. ENOSYS would make the kernel stop asking for ever, which is no help to anyone.

func (p *probe) Make(context.Context, workcopy.NodeID, string, workcopy.NewInode) (workcopy.NodeID, workcopy.Attr, error) {
	return 0, workcopy.Attr{}, syscall.EROFS
}

func (p *probe) Tmpfile(context.Context, workcopy.NodeID, workcopy.NewInode) (workcopy.NodeID, workcopy.Attr, error) {
	return 0, workcopy.Attr{}, syscall.EROFS
}

func (p *probe) Link(context.Context, workcopy.NodeID, workcopy.NodeID, string) (workcopy.Attr, error) {
	return workcopy.Attr{}, syscall.EROFS
}

func (p *probe) Unlink(context.Context, workcopy.NodeID, string) error { return syscall.EROFS }

func (p *probe) Rmdir(context.Context, workcopy.NodeID, string) error { return syscall.EROFS }

func (p *probe) Rename(context.Context, workcopy.NodeID, string, workcopy.NodeID, string, uint32) error {
	return syscall.EROFS
}

func (p *probe) Readlink(context.Context, workcopy.NodeID) (string, error) { return "", syscall.EINVAL }

func (p *probe) GetXattr(_ context.Context, _ workcopy.NodeID, name string) ([]byte, error) {
	if p.deaf {
		return nil, syscall.ENOSYS
	}
	if name == workcopy.Capability {
		p.lockGate()
		defer p.mu.Unlock()
		p.caps.Add(1)
	}
	return nil, syscall.ENODATA
}

func (p *probe) SetXattr(context.Context, workcopy.NodeID, string, []byte, uint32) error {
	return syscall.EROFS
}

func (p *probe) RemoveXattr(context.Context, workcopy.NodeID, string) error { return syscall.EROFS }

func (p *probe) ListXattr(context.Context, workcopy.NodeID) ([]string, error) { return nil, nil }

func (p *probe) Fallocate(context.Context, workcopy.NodeID, uint32, int64, int64) error {
	return syscall.EOPNOTSUPP
}

func (p *probe) CopyRange(context.Context, workcopy.NodeID, int64, workcopy.NodeID, int64, int64) (int64, error) {
	return 0, syscall.EOPNOTSUPP
}
