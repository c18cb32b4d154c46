package hub

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/remote/hubproto"
)

// asker is who asks; the empty one is anybody.
type asker string

// splitDot checks a dot's name.
func splitDot(name string) (owner string, err error) {
	ns, dot, ok := strings.Cut(name, "/")
	if !ok || !nameRE.MatchString(ns) || !nameRE.MatchString(dot) {
		return "", errs.New(errs.Usage, "invalid dot name '%.140s': it is NAMESPACE/DOT, each of letters, digits, '_' and '-', at most 64", name)
	}
	return ns, nil
}

// access says what the asker may do with a dot. rec is nil where there is none.
func access(who asker, owner string, rec *dotRecord) hubproto.Access {
	switch {
	case who != "" && string(who) == owner:
		return hubproto.Write
	case rec == nil:
		return hubproto.None
	}
	if a := rec.Shares[string(who)]; who != "" && (a == hubproto.Read || a == hubproto.Write) {
		return a
	}
	if rec.Public {
		return hubproto.Read
	}
	return hubproto.None
}

// readable finds a dot that the asker may read; nil where there is none, which is all the asker learns.
func readable(a accounts, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	rec, err := a.dot(name)
	if err != nil || rec == nil || access(who, owner, rec) == hubproto.None {
		return nil, err
	}
	return rec, nil
}

// writable finds a dot that the asker may write: NotAllowed if not. It is nil where there is none yet, which the owner may
// make.
func writable(a accounts, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	rec, err := a.dot(name)
	if err != nil {
		return nil, err
	}
	if access(who, owner, rec) != hubproto.Write {
		return nil, errs.WithHint(errs.New(errs.NotAllowed, "you may not write to %s", name),
			"its owner %s can share it with you: 'dm hub share'", owner)
	}
	return rec, nil
}

// ensureDot makes a dot that the asker may write, if there is none.
func (h *Hub) ensureDot(ctx context.Context, who asker, name string) error {
	var rec *dotRecord
	err := h.engine.look(ctx, func(a accounts) (err error) {
		rec, err = writable(a, who, name)
		return err
	})
	if err != nil || rec != nil {
		return err
	}
	var id [8]byte
	rand.Read(id[:])
	owner, _, _ := strings.Cut(name, "/")
	return h.engine.change(ctx, func(a accounts) error {
		if rec, err := writable(a, who, name); err != nil || rec != nil {
			return err
		}
		n, _, err := dotsOf(a, owner)
		if err != nil {
			return err
		}
		if n >= h.cfg.Limits.Dots {
			return errs.New(errs.NotAllowed, "user %s has %d dots, more are not allowed", owner, n)
		}
		return a.putDot(name, &dotRecord{ID: hex.EncodeToString(id[:]), Created: time.Now().UTC()})
	})
}

// dotsOf counts a user's dots, those in the making included. last is the name of one.
func dotsOf(a accounts, user string) (n int, last string, err error) {
	err = a.eachDot(user, func(name string, _ *dotRecord) error {
		n, last = n+1, name
		return nil
	})
	return n, last, err
}

// eachReadable calls fn for each dot that the asker may read.
func eachReadable(a accounts, who asker, fn func(name string, rec *dotRecord, a hubproto.Access) error) error {
	return a.eachDot("", func(name string, rec *dotRecord) error {
		owner, _, _ := strings.Cut(name, "/")
		if may := access(who, owner, rec); may != hubproto.None {
			return fn(name, rec, may)
		}
		return nil
	})
}

// see returns what the asker sees from a dot, which find returns.
func (h *Hub) see(ctx context.Context, who asker, name string, find func(accounts, asker, string) (*dotRecord, error)) (*sight, error) {
	s := &sight{}
	err := h.engine.look(ctx, func(a accounts) (err error) {
		s.others = nil
		if s.own, err = find(a, who, name); err != nil {
			return err
		}
		return eachReadable(a, who, func(_ string, rec *dotRecord, _ hubproto.Access) error {
			if s.own == nil || rec.ID != s.own.ID {
				s.others = append(s.others, rec)
			}
			return nil
		})
	})
	s.still = func(ctx context.Context) error {
		return h.engine.look(ctx, func(a accounts) error {
			rec, err := writable(a, who, name)
			if err == nil && (rec == nil || s.own == nil || rec.ID != s.own.ID) {
				err = errs.WithHint(errs.New(errs.Conflict, "the dot was deleted meanwhile"), "push again")
			}
			return err
		})
	}
	return s, err
}

// shares returns who has access to a dot beside its owner.
func (h *Hub) shares(ctx context.Context, who asker, name string) (list []hubproto.Share, err error) {
	err = h.engine.look(ctx, func(a accounts) error {
		list = nil
		rec, err := owned(a, who, name)
		if err != nil {
			return err
		}
		for _, user := range slices.Sorted(maps.Keys(rec.Shares)) {
			list = append(list, hubproto.Share{User: user, Access: rec.Shares[user]})
		}
		if rec.Public {
			list = append(list, hubproto.Share{User: hubproto.Everyone, Access: hubproto.Read})
		}
		return nil
	})
	return list, err
}

// administrator may do what each owner may. No user can have this name.
const administrator = asker("\x00admin")

// owned finds a dot for its owner.
func owned(a accounts, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	if string(who) != owner && who != administrator {
		return nil, errs.New(errs.NotAllowed, "only the owner %s may do that with %s", owner, name)
	}
	rec, err := a.dot(name)
	if err == nil && rec == nil {
		err = errs.New(errs.NotFound, "there is no dot %s", name)
	}
	return rec, err
}

// share changes what a user may do with a dot.
func (h *Hub) share(ctx context.Context, who asker, name string, s hubproto.Share) error {
	switch s.Access {
	case hubproto.None, hubproto.Read, hubproto.Write:
	default:
		return errs.New(errs.Usage, "unknown access '%.20s': it is none, read or write", s.Access)
	}
	if s.User != hubproto.Everyone {
		if err := checkUser(s.User); err != nil {
			return err
		}
	}
	err := h.engine.change(ctx, func(a accounts) error {
		rec, err := owned(a, who, name)
		if err != nil {
			return err
		}
		if s.User == hubproto.Everyone {
			if s.Access == hubproto.Write {
				return errs.New(errs.Usage, "everyone may at most read")
			}
			rec.Public = s.Access == hubproto.Read
			return a.putDot(name, rec)
		}
		if s.Access == hubproto.None {
			delete(rec.Shares, s.User)
			return a.putDot(name, rec)
		}
		if u, err := a.user(s.User); err != nil || u == nil {
			return noUser(s.User, err)
		}
		if rec.Shares == nil {
			rec.Shares = map[string]hubproto.Access{}
		}
		rec.Shares[s.User] = s.Access
		return a.putDot(name, rec)
	})
	if err == nil {
		h.audit(who.name(), "dot shared", "dot", name, "with", s.User, "access", string(s.Access))
	}
	return err
}

// name is how the asker appears in the audit log.
func (a asker) name() string {
	if a == administrator {
		return "(administrator)"
	}
	return string(a)
}
