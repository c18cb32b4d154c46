// Package hub is a remote for many users: a server that keeps dots, each in its owner's namespace, and lets others read or
// write those that were shared with them. Its clients are package remote/hubremote; what they say to each other is package
// remote/hubproto.
//
// # State
//
// A hub has a directory of its own:
//
//	store/      objects (package store)
//	hub.db      bbolt: users, dots, refs, and which dot has which objects
//	cert.pem    certificate and key that it made for itself, unless it was given others
//	hub.sock    for the administrator's commands while the hub runs
//	lock        in hub.db itself: one process has it open
//
// # Which dot has which objects
//
// One store holds everybody's objects, each once. What a user gets to know must not depend on what others have, so hub.db
// keeps for each dot the set of its members: objects that were sent to it, and what those need. The rules:
//
//   - A member's needs are members. A pack is refused if it holds an object that needs one which is neither in the pack nor
//     a member nor, together with all it needs, in another dot that the sender may read; in that case it becomes a member.
//   - An object is missing, for a user and a dot, unless it is a member of that dot or of another that the user may read.
//   - Only members are read through a dot, and a ref points to a member.
//
// So whoever names an id without having had the object learns nothing, and a ref moves without a walk over what it needs.
//
// Order of writes: the store has an object durably before hub.db says that it is a member; members and refs change in one
// transaction each. A crash leaves objects that are nobody's, which do no harm.
package hub

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/store"
	"dm/store/pack"
)

// Config is the choices of a hub.
type Config struct {
	Dir     string       // its state
	Version string       // of dm, told to clients
	Log     *slog.Logger // of operation and, with the attribute audit=true, of each change; nil: none
	MinFree int64        // free bytes on the disk below which nothing more is taken in; 0: 1 GiB
	Limits  Limits
}

// Limits bound what users may ask of a hub at a time. Zero values stand for the defaults in parentheses.
type Limits struct {
	Transfers     int           // packs taken in and loads answered at a time (64)
	UserTransfers int           // the same, of one user (16)
	Logins        int           // failed logins from one address before it has to wait (10)
	LoginWait     time.Duration // how long (1 minute)
	Dots          int           // of one user (10,000)
}

func (l *Limits) fill() {
	set := func(v *int, n int) {
		if *v == 0 {
			*v = n
		}
	}
	set(&l.Transfers, 64)
	set(&l.UserTransfers, 16)
	set(&l.Logins, 10)
	set(&l.Dots, 10000)
	if l.LoginWait == 0 {
		l.LoginWait = time.Minute
	}
}

const defaultMinFree = 1 << 30

// Hub is an open hub. It is safe for concurrent use.
type Hub struct {
	cfg   Config
	log   *slog.Logger
	store *store.Store
	db    *bbolt.DB
	codec *pack.Codec
	gates gates
	stats *metrics
}

// Open opens the hub in cfg.Dir and creates it if there is none. It fails with errs.Conflict if another process has it open.
func Open(ctx context.Context, cfg Config) (_ *Hub, err error) {
	cfg.Limits.fill()
	if cfg.MinFree == 0 {
		cfg.MinFree = defaultMinFree
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, errs.New(errs.KindOf(err), "open hub %s: %w", cfg.Dir, err)
	}
	h := &Hub{cfg: cfg, log: cfg.Log}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if h.store, err = store.Open(ctx, filepath.Join(cfg.Dir, "store"), store.Options{MinFree: cfg.MinFree}); err != nil {
		return nil, err
	}
	if h.db, err = openDB(filepath.Join(cfg.Dir, "hub.db")); err != nil {
		return nil, err
	}
	if h.codec, err = pack.NewCodec(pack.Fast); err != nil {
		return nil, err
	}
	h.gates = newGates(cfg.Limits)
	h.stats = newMetrics(h)
	return h, nil
}

// Close closes the hub. Nothing may be in use any more.
func (h *Hub) Close() error {
	var err error
	if h.codec != nil {
		h.codec.Close()
	}
	if h.db != nil {
		err = h.db.Close()
	}
	if h.store != nil {
		if serr := h.store.Close(); err == nil {
			err = serr
		}
	}
	return err
}

// audit writes a line about a change that a user made.
func (h *Hub) audit(user, what string, args ...any) {
	h.log.Info(what, append([]any{"audit", true, "user", user}, args...)...)
}
