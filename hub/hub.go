// Package hub is a remote for many users: a server that keeps dots, each in its owner's namespace, and lets others read or
// write those that were shared with them. Its clients are package remote/hubremote; what they say to each other is package
// remote/hubproto.
//
// # State
//
// A hub has a directory of its own:
//
//	store/      objects (package store)
//	hub.db      bbolt: users, dots, refs, and which dot has which objects; one process has it open
//	cert.pem    certificate and key that it made for itself, unless it was given others
//	hub.sock    for the administrator's commands while the hub runs
//
// Or it keeps all that matters in an S3 bucket, and any number of hubs serve that bucket, each with a directory for its
// certificate, its socket, and caches that can be lost (see sharedEngine and docs/format/remote.md).
//
// # Which dot has which objects
//
// Everybody's objects are in one place, each once. What a user gets to know must not depend on what others have, so the hub
// knows for each dot the set of its members: objects that were sent to it, and what those need. The rules:
//
//   - A member's needs are members. A pack is refused if it holds an object that needs one which is neither in the pack nor
//     a member nor, together with all it needs, in another dot that the sender may read; in that case it becomes a member.
//   - An object is missing, for a user and a dot, unless it is a member of that dot or of another that the user may read.
//   - Only members are read through a dot, and a ref points to a member.
//
// So whoever names an id without having had the object learns nothing, and a ref moves without a walk over what it needs.
//
// Order of writes: an object is durable before it is a member; members and refs change all at once each. A crash leaves
// objects that are nobody's, which do no harm.
package hub

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"dm/remote/bucket"
)

// Config is the choices of a hub.
type Config struct {
	Dir     string       // its state
	S3      string       // s3://ACCESSKEY@BUCKET[/PREFIX][?endpoint=URL&region=REGION]: its state is there; empty: in Dir
	S3Key   string       // the secret key for S3
	Version string       // of dm, told to clients
	Log     *slog.Logger // of operation and, with the attribute audit=true, of each change; nil: none
	MinFree int64        // without S3: free bytes on the disk below which nothing more is taken in; 0: 1 GiB
	Limits  Limits
}

// Limits bound what users may ask of a hub at a time. Zero values stand for the defaults in parentheses.
type Limits struct {
	Transfers     int           // packs taken in and loads answered at a time (24)
	UserTransfers int           // the same, of one user (12)
	TransferWait  time.Duration // how long others wait before they are told to come back (30 seconds)
	Logins        int           // wrong keys of one user from one address before they have to wait (10)
	LoginWait     time.Duration // how long, doubled with each more (1 minute)
	Dots          int           // of one user (10,000)
	Refs          int           // of one dot (10,000)
	Connections   int           // at a time (1,024)
}

func (l *Limits) fill() {
	set := func(v *int, n int) {
		if *v == 0 {
			*v = n
		}
	}
	set(&l.Transfers, 24)
	set(&l.UserTransfers, 12)
	set(&l.Logins, 10)
	set(&l.Dots, 10000)
	set(&l.Refs, 10000)
	set(&l.Connections, 1024)
	l.LoginWait = cmp.Or(l.LoginWait, time.Minute)
	l.TransferWait = cmp.Or(l.TransferWait, 30*time.Second)
}

const defaultMinFree = 1 << 30

// Hub is an open hub. It is safe for concurrent use.
type Hub struct {
	cfg    Config
	log    *slog.Logger
	engine engine
	gates  *gates
	stats  *metrics
}

// Open opens the hub in cfg.Dir, or in the bucket, and creates it if there is none. It fails with errs.Conflict if another
// process has the directory open.
func Open(ctx context.Context, cfg Config) (*Hub, error) {
	if cfg.S3 == "" {
		e, err := openLocal(ctx, cfg.Dir, cmp.Or(cfg.MinFree, defaultMinFree))
		if err != nil {
			return nil, err
		}
		return newHub(cfg, e), nil
	}
	b, err := openBucket(cfg)
	if err != nil {
		return nil, err
	}
	return openIn(ctx, cfg, b)
}

// openIn opens the hub in a bucket, which it closes with it.
func openIn(ctx context.Context, cfg Config, b bucket.Bucket) (*Hub, error) {
	e, err := openShared(ctx, cfg.Dir, b)
	if err != nil {
		b.Close()
		return nil, err
	}
	return newHub(cfg, e), nil
}

func newHub(cfg Config, e engine) *Hub {
	cfg.Limits.fill()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{cfg: cfg, log: cfg.Log, engine: e, gates: newGates(cfg.Limits)}
	h.stats = newMetrics(h)
	return h
}

// Close closes the hub. Nothing may be in use any more.
func (h *Hub) Close() error { return h.engine.close() }

// audit writes a line about a change that a user made.
func (h *Hub) audit(user, what string, args ...any) {
	h.log.Info(what, append([]any{"audit", true, "user", user}, args...)...)
}
