package remote

import (
	"context"
	"sync"

	"dm/object"
)

// Stats says what a transfer moved.
type Stats struct {
	Bytes   int64 // that went over the wire in packs and records
	Plain   int64 // bytes of the objects that traveled, as they are unpacked
	Objects int64 // that traveled
	Packs   int64 // sent
	Commits int64 // that traveled
}

// Progress is how far a transfer is, in plain bytes and objects. The totals grow while what is missing is being found.
type Progress struct {
	Bytes, TotalBytes     int64
	Objects, TotalObjects int64
	Wire                  int64 // bytes that went over the wire
}

// meter counts and tells. It is safe for concurrent use; tell is called by one goroutine at a time.
type meter struct {
	mu    sync.Mutex
	p     Progress
	stats Stats
	tell  func(Progress)
}

func (m *meter) update(fn func(p *Progress, s *Stats)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(&m.p, &m.stats)
	if m.tell != nil {
		m.tell(m.p)
	}
}

func (m *meter) total() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Count returns how many objects a commit has, itself included and its parents not: what "of N objects" means. It
// reads trees and lists, no chunks.
func Count(ctx context.Context, src object.Source, id object.ID) (objects int64, err error) {
	b, err := src.Get(ctx, object.KindCommit, id)
	if err != nil {
		return 0, err
	}
	c, err := object.DecodeCommit(b)
	if err != nil {
		return 0, err
	}
	seen := &idSet{}
	stack := commitNodes(c, nil)
	objects = 1
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !seen.add(n.ID) {
			continue
		}
		objects++
		if n.Kind == object.KindChunk {
			continue
		}
		b, err := src.Get(ctx, n.Kind, n.ID)
		if err != nil {
			return 0, err
		}
		below, err := expand(&n, b, func(Want) []byte { return nil })
		if err != nil {
			return 0, err
		}
		stack = append(stack, below...)
	}
	return objects, nil
}
