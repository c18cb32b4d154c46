package daemon

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// keyed is one lock per key, for readers and a writer, that can be waited for with a context. Waiting is in order, so a
// writer is not starved.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	sem   *semaphore.Weighted
	users int // who holds or waits for it; guarded by keyed.mu
}

// whole is more readers at a time than there can be.
const whole = 1 << 30

// share locks key for reading.
func (k *keyed) share(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, 1)
}

// alone locks key for writing.
func (k *keyed) alone(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, whole)
}

func (k *keyed) acquire(ctx context.Context, key string, weight int64) (func(), error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{sem: semaphore.NewWeighted(whole)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	if err := l.sem.Acquire(ctx, weight); err != nil {
		k.drop(key, l)
		return nil, err
	}
	return func() {
		l.sem.Release(weight)
		k.drop(key, l)
	}, nil
}

func (k *keyed) drop(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}
