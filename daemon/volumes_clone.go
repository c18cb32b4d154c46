package daemon

import (
	"context"
	"net/http"
	"sync"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

// cloneWait is how long Docker is kept waiting for a clone; it gives up after two minutes. The clone goes on.
const cloneWait = 90 * time.Second

// clones is the clones that volumes have asked for and that run, by namespace/name of the dot to be.
type clones struct {
	mu  sync.Mutex
	all map[string]*cloneJob
}

type cloneJob struct {
	done chan struct{} // closed at the end
	err  error         // valid then
}

// cloneFor makes the dot n as a clone of one at a remote, for a volume that is created with from=. Of the volumes of one dot
// that are created together the first begins the clone, and all wait for it. The remote is looked up in the config of the
// user who started the server.
func (d *volumeDriver) cloneFor(ctx context.Context, n dot.Name, o volumeOptions) error {
	j := d.clones.begin(key(n), func() error { return d.clone(n, o) })
	wait := time.NewTimer(cloneWait)
	defer wait.Stop()
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return errs.WithHint(errs.New(errs.Conflict, "dot %s is still being cloned from %s", n.DotName(), o.from.Remote),
			"see 'dm transfers', and try again when it is there")
	}
}

// begin starts a clone unless one of the same dot runs.
func (c *clones) begin(key string, run func() error) *cloneJob {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.all[key]; j != nil {
		return j
	}
	j := &cloneJob{done: make(chan struct{})}
	c.all[key] = j
	go func() {
		j.err = run()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, key)
		close(j.done)
	}()
	return j
}

// clone runs until it is done or the server ends, whether or not Docker waits.
func (d *volumeDriver) clone(n dot.Name, o volumeOptions) error {
	return d.guarded(func() error {
		if d.s.cfg.Remote == nil {
			return errs.New(errs.NotFound, "this server knows no remotes")
		}
		rem, err := d.s.cfg.Remote(o.from.Remote)
		if err != nil {
			return err
		}
		res, err := d.s.clone(d.life, api.CloneRequest{
			Remote: rem, Name: o.from.Name, Branch: o.from.Branch, Local: n.DotName(), Cache: string(o.cache),
		}, api.NewStream(nowhere{}))
		if err == nil {
			d.log.Info("dot is cloned for a volume", "dot", n, "from", res.Remote, "head", res.Head, "bytes", res.Bytes)
		}
		return err
	})
}

// nowhere is a client that does not listen.
type nowhere struct{}

func (nowhere) Header() http.Header { return http.Header{} }

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

func (nowhere) WriteHeader(int) {}

// FlushError is what http.ResponseController looks for.
func (nowhere) FlushError() error { return nil }
