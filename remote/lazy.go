package remote

import (
	"context"

	"dm/object"
	"dm/store/pack"
)

// Record is a commit's record: the commit without what it needs.
type Record struct {
	ID    object.ID
	Plain []byte
}

// FetchRecords brings the records of commits with their history, as far back as those that known says are here, and nothing
// that they need. It stores nothing; parents come before their children.
func FetchRecords(ctx context.Context, local Local, from Objects, tips []object.ID, known func(object.ID) (bool, error), o FetchOptions) ([]Record, Stats, error) {
	f, err := newFetcher(ctx, local, from, nil, o)
	if err != nil {
		return nil, Stats{}, err
	}
	defer f.codec.Close()
	defer f.guard.Abort()
	defer f.batch.Abort()
	if err := f.fetchCommits(ctx, tips, known); err != nil {
		return nil, f.meter.total(), err
	}
	var list []Record
	for _, id := range f.order(tips) {
		list = append(list, Record{id, f.commits[id].plain})
	}
	f.meter.update(func(_ *Progress, s *Stats) { s.Commits = int64(len(list)) })
	return list, f.meter.total(), nil
}

// maxFetchExtra is how many bytes of what was not asked for FetchObjects waits for.
const maxFetchExtra = 1 << 20

// FetchObjects brings single objects, no commits, into the local store, without what they need. It may bring some more that
// the remote expects to be wanted next. Each is compared with its id.
func FetchObjects(ctx context.Context, local Local, from Objects, wants []Want) (Stats, error) {
	f, err := newFetcher(ctx, local, from, nil, FetchOptions{})
	if err != nil {
		return Stats{}, err
	}
	defer f.codec.Close()
	defer f.guard.Abort()
	defer func() { f.batch.Abort() }()
	f.enough = maxFetchExtra
	put := func(r *pack.Record, id object.ID, plain []byte) error { return f.put(ctx, r, id, r.Kind, plain) }
	if err := f.load(ctx, wants, put); err != nil {
		return f.meter.total(), err
	}
	if err := f.load(ctx, f.extras(), put); err != nil {
		return f.meter.total(), err
	}
	return f.meter.total(), f.batch.Commit(ctx)
}

// extras returns what came without being asked for and can be decoded as it is.
func (f *fetcher) extras() []Want {
	f.aheadMu.Lock()
	defer f.aheadMu.Unlock()
	var list []Want
	for id, r := range f.ahead {
		if r.Kind != object.KindCommit && !r.Encoding.HasBase() {
			list = append(list, Want{r.Kind, id})
		}
	}
	return list
}
