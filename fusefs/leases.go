package fusefs

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"dm/workcopy"
)

// leases is what the server knows of the attributes and the data of regular files that the kernel holds:
//
//	refs    how many references the kernel has on a node, answers on their way to it included
//	leased  files whose attributes it may hold as valid, and that it may write to: it takes a write(2) on them without asking
//	warm    files that may have dirty pages without a lease: the lease was called back, but a write(2) that began before
//	        may still be going on; or WRITEs came without a lease, which betrays a shared mmap
//	owed    files whose data came from the cache and whose times have not come yet
//
// The kernel may hold the attributes of any other file as well, without a lease: it asks before the first write(2) on it. For
// with each answer that has a file's attributes it forgets that the file has no capabilities (S_NOSEC), which a write(2)
// would have to clear, and so asks for the attribute security.capability, with the file's lock held. That question makes a
// lease, and waits at the gate. So what was merely looked at costs a cut nothing, however much it is. A file that is leased or
// warm gets a lease with each answer: a write(2) that has asked already may be about to note that there are no capabilities.
//
// A cut flushes what is leased or warm. A file leaves warm when it was flushed with no writer in it some time after its
// lease ended (see cutter.retire), so the cost of a cut follows the files in use.
//
// Safe for concurrent use. When it is off (write-through, read-only) every file may be cached and only warm is kept.
type leases struct {
	on     bool
	max    atomic.Int64
	count  atomic.Int64 // of leased
	full   chan struct{}
	shards [leaseShards]leaseShard

	// dark is the number of the cut during which no leases are given, or 0. It starts with Recall and ends when a request
	// that waited at the gate comes back: the server is not told when the gate opens.
	dark atomic.Uint64
	cuts atomic.Uint64
	// dim is until when no leases are given in preparation of a cut, as time.UnixNano, or 0. It ends with dark; by time
	// only where a cut is prepared and then not made.
	dim atomic.Int64

	// skipAsked leaves out that the question before the first write(2) makes a lease, for nodes from this one on; 0: for none.
	// Tests set it, to see that they would notice.
	skipAsked atomic.Uint64
}

const (
	leaseShards = 64
	// maxLeases is how many files a cut should have to call back, which bounds how long the step before the gate takes: some
	// microseconds each. Beyond it leases are called back in the background.
	maxLeases = 1 << 16
)

type leaseShard struct {
	mu     sync.Mutex
	refs   map[workcopy.NodeID]uint64
	leased map[workcopy.NodeID]time.Time // since when nothing was heard of it
	warm   map[workcopy.NodeID]warmth
	owed   map[workcopy.NodeID]struct{}
}

// warmth says since when a file has been warm, and why.
type warmth struct {
	since  time.Time
	mapped bool // written without a lease
}

func newLeases(on bool) *leases {
	l := &leases{on: on, full: make(chan struct{}, 1)}
	l.max.Store(maxLeases)
	for i := range l.shards {
		s := &l.shards[i]
		s.refs = map[workcopy.NodeID]uint64{}
		s.leased = map[workcopy.NodeID]time.Time{}
		s.warm = map[workcopy.NodeID]warmth{}
		s.owed = map[workcopy.NodeID]struct{}{}
	}
	return l
}

func (l *leases) shard(id workcopy.NodeID) *leaseShard {
	return &l.shards[uint64(id)%leaseShards]
}

// ref counts references that an answer gives to the kernel.
func (l *leases) ref(id workcopy.NodeID, n uint64) {
	if !l.on {
		return
	}
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs[id] += n
}

// take counts references and says whether the kernel may hold the attributes in the answer.
func (l *leases) take(id workcopy.NodeID, refs uint64) bool {
	if !l.on {
		return true
	}
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if refs > 0 {
		s.refs[id] += refs
	}
	_, leased := s.leased[id]
	if _, warm := s.warm[id]; !leased && !warm {
		return true // and will ask before it writes
	}
	return l.lease(s, id)
}

// takeForWrite is take for what may be the question before a write(2). Where no lease is given that one write(2) still
// goes on.
func (l *leases) takeForWrite(id workcopy.NodeID) bool {
	if !l.on {
		return true
	}
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.lease(s, id) {
		return true
	}
	s.warm[id] = warmth{time.Now(), s.warm[id].mapped}
	return false
}

// lease gives a lease, if any are given now. The caller holds the shard's lock.
func (l *leases) lease(s *leaseShard, id workcopy.NodeID) bool {
	if l.dark.Load() != 0 || l.dimmed() {
		return false
	}
	if _, has := s.leased[id]; !has && l.count.Load() >= l.max.Load() {
		l.tooMany()
		return false
	}
	l.track(s, id)
	return true
}

func (l *leases) track(s *leaseShard, id workcopy.NodeID) {
	if _, has := s.leased[id]; !has {
		l.count.Add(1)
	}
	s.leased[id] = time.Now()
}

// tooMany has the cutter call some leases back.
func (l *leases) tooMany() {
	select {
	case l.full <- struct{}{}:
	default:
	}
}

// writes notes that the kernel has asked what it asks before the first write(2). It may hold the attributes as valid: that is
// a lease, whether one can be given or not. It must be called before the question waits at the gate, so that either Recall
// finds the lease or the gate is closed to the write(2); and once more behind the gate, because Recall has ended it.
func (l *leases) writes(id workcopy.NodeID) {
	if skip := l.skipAsked.Load(); !l.on || skip != 0 && uint64(id) >= skip {
		return
	}
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[id] == 0 {
		return // somebody asks for the attribute of a directory
	}
	l.track(s, id)
	if l.count.Load() > l.max.Load() {
		l.tooMany()
	}
}

// forget takes references back. A node without any is not in the kernel, and nothing of it is dirty: the last close of a
// file writes it out.
func (l *leases) forget(id workcopy.NodeID, n uint64) {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.on {
		if have := s.refs[id]; have > n {
			s.refs[id] = have - n
			return
		}
	}
	delete(s.refs, id)
	delete(s.warm, id)
	delete(s.owed, id)
	if _, has := s.leased[id]; has {
		delete(s.leased, id)
		l.count.Add(-1)
	}
}

// known says whether the kernel has the node, or an answer with it is on its way.
func (l *leases) known(id workcopy.NodeID) bool {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refs[id] > 0
}

// wrote notes that data of a file came from the kernel's cache.
func (l *leases) wrote(id workcopy.NodeID) {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.on {
		s.owed[id] = struct{}{}
	}
	if _, has := s.leased[id]; has {
		s.leased[id] = time.Now()
		return
	}
	w, was := s.warm[id]
	s.warm[id] = warmth{time.Now(), w.mapped || !was}
}

// paid notes that the times of a file came, and says whether they were owed.
func (l *leases) paid(id workcopy.NodeID) bool {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, owed := s.owed[id]
	delete(s.owed, id)
	return owed
}

// dimTime bounds the time in which a cut is prepared without leases.
const dimTime = 2 * time.Second

// dimDown ends the giving of leases for the last part of a cut's preparation. Each write(2) then asks, which slows writers
// of many files down to what the flusher can follow.
func (l *leases) dimDown() { l.dim.Store(time.Now().Add(dimTime).UnixNano()) }

func (l *leases) dimmed() bool {
	until := l.dim.Load()
	if until == 0 {
		return false
	}
	if time.Now().UnixNano() < until {
		return true
	}
	l.dim.CompareAndSwap(until, 0)
	return false
}

// darken ends the giving of leases until lighten.
func (l *leases) darken() {
	l.dark.Store(l.cuts.Add(1))
}

// lighten lets leases be given again, if the cut is still the one that a request saw when it came.
func (l *leases) lighten(cut uint64) {
	if cut != 0 && l.dark.Load() == cut {
		l.dim.Store(0) // before dark: a next cut's preparation cannot have begun while it is dark
		l.dark.CompareAndSwap(cut, 0)
	}
}

// recall makes leased files warm and returns them. The caller tells the kernel.
func (l *leases) recall() []workcopy.NodeID { return l.recallOf(math.MaxInt, time.Now()) }

// recallOf is recall of up to most files of which nothing was heard since before the given time.
func (l *leases) recallOf(most int, before time.Time) []workcopy.NodeID {
	var ids []workcopy.NodeID
	now := time.Now()
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for id, since := range s.leased {
			if len(ids) >= most {
				break
			}
			if since.After(before) {
				continue
			}
			ids = append(ids, id)
			s.warm[id] = warmth{now, s.warm[id].mapped}
			delete(s.leased, id)
			l.count.Add(-1)
		}
		s.mu.Unlock()
	}
	return ids
}

// hot returns what may have dirty pages.
func (l *leases) hot() []workcopy.NodeID {
	var ids []workcopy.NodeID
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for id := range s.warm {
			ids = append(ids, id)
		}
		for id := range s.leased {
			if _, both := s.warm[id]; !both {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
	}
	return ids
}

// heat returns about how many files hot has.
func (l *leases) heat() (n int) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += len(s.warm) + len(s.leased)
		s.mu.Unlock()
	}
	return n
}

// isHot says whether a file may have dirty pages.
func (l *leases) isHot(id workcopy.NodeID) bool {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, warm := s.warm[id]
	_, leased := s.leased[id]
	return warm || leased
}

// How long a file stays leased and warm.
const (
	// idleTime is how long a file may be leased and not be heard of. A file in use is heard of when the kernel writes it back.
	idleTime = time.Minute
	// coolTime is how long a write(2) that has been given its attributes may take to reach the file's lock. It is far more
	// than a runnable thread waits for a processor.
	coolTime = 2 * time.Second
	// mapTime is how long a file that was written through a shared mmap counts as mapped after the last sign of it.
	mapTime = 10 * time.Minute
)

// cooling returns the files that have been warm for long enough to be retired.
func (l *leases) cooling(now time.Time) (ids []workcopy.NodeID) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for id, w := range s.warm {
			limit := coolTime
			if w.mapped {
				limit = mapTime
			}
			if now.Sub(w.since) >= limit {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
	}
	return ids
}

// cool takes a file out of warm, unless something happened to it since the given time.
func (l *leases) cool(id workcopy.NodeID, since time.Time) {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.warm[id]; ok && w.since.Before(since) {
		delete(s.warm, id)
	}
}

// drop takes a file that the kernel no longer has out of warm.
func (l *leases) drop(id workcopy.NodeID) {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.warm, id)
}
