package hub

import (
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
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
func readable(tx *bbolt.Tx, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	var rec dotRecord
	ok, err := getJSON(tx, bucketDots, name, &rec)
	if err != nil || !ok || access(who, owner, &rec) == hubproto.None {
		return nil, err
	}
	return &rec, nil
}

// writable finds a dot that the asker may write: NotAllowed if not. It is nil where there is none yet, which the owner may
// make.
func writable(tx *bbolt.Tx, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	var rec dotRecord
	ok, err := getJSON(tx, bucketDots, name, &rec)
	if err != nil {
		return nil, err
	}
	found := &rec
	if !ok {
		found = nil
	}
	if access(who, owner, found) != hubproto.Write {
		return nil, errs.WithHint(errs.New(errs.NotAllowed, "you may not write to %s", name),
			"its owner %s can share it with you: 'dm hub share'", owner)
	}
	return found, nil
}

// ensureDot returns a dot that the asker may write, and makes it if need be.
func (h *Hub) ensureDot(tx *bbolt.Tx, who asker, name string) (*dotRecord, error) {
	rec, err := writable(tx, who, name)
	if err != nil || rec != nil {
		return rec, err
	}
	owner, _, _ := strings.Cut(name, "/")
	if n := dotsOf(tx, owner); n >= h.cfg.Limits.Dots {
		return nil, errs.New(errs.NotAllowed, "user %s has %d dots, more are not allowed", owner, n)
	}
	var id [8]byte
	rand.Read(id[:])
	rec = &dotRecord{ID: hex.EncodeToString(id[:]), Created: time.Now().UTC()}
	if _, err := tx.Bucket([]byte(bucketMembers)).CreateBucketIfNotExists([]byte(rec.ID)); err != nil {
		return nil, err
	}
	return rec, putJSON(tx, bucketDots, name, rec)
}

// dotsOf counts a user's dots, those in the making included.
func dotsOf(tx *bbolt.Tx, user string) (n int) {
	c := tx.Bucket([]byte(bucketDots)).Cursor()
	prefix := user + "/"
	for k, _ := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
		n++
	}
	return n
}

// eachReadable calls fn for each dot that the asker may read.
func eachReadable(tx *bbolt.Tx, who asker, fn func(name string, rec *dotRecord, a hubproto.Access) error) error {
	return tx.Bucket([]byte(bucketDots)).ForEach(func(k, _ []byte) error {
		var rec dotRecord
		if _, err := getJSON(tx, bucketDots, string(k), &rec); err != nil {
			return err
		}
		owner, _, _ := strings.Cut(string(k), "/")
		a := access(who, owner, &rec)
		if a == hubproto.None {
			return nil
		}
		return fn(string(k), &rec, a)
	})
}

// sight is what an asker sees through a dot and around it, in one transaction.
type sight struct {
	own    *bbolt.Bucket   // the dot's members; nil: it has none
	others []*bbolt.Bucket // those of other dots that the asker may read
}

func see(tx *bbolt.Tx, who asker, own *dotRecord) (*sight, error) {
	s := &sight{}
	if own != nil {
		s.own = members(tx, own.ID)
	}
	err := eachReadable(tx, who, func(_ string, rec *dotRecord, _ hubproto.Access) error {
		if own == nil || rec.ID != own.ID {
			if b := members(tx, rec.ID); b != nil {
				s.others = append(s.others, b)
			}
		}
		return nil
	})
	return s, err
}

// member says whether the dot has an object.
func (s *sight) member(id object.ID) bool { return s.own != nil && s.own.Get(id[:]) != nil }

// elsewhere says whether another dot that the asker may read has an object, and its kind.
func (s *sight) elsewhere(id object.ID) (object.Kind, bool) {
	for _, b := range s.others {
		if v := b.Get(id[:]); len(v) == 1 {
			return object.Kind(v[0]), true
		}
	}
	return 0, false
}

// shares returns who has access to a dot beside its owner.
func (h *Hub) shares(who asker, name string) (list []hubproto.Share, err error) {
	err = h.db.View(func(tx *bbolt.Tx) error {
		rec, err := owned(tx, who, name)
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
func owned(tx *bbolt.Tx, who asker, name string) (*dotRecord, error) {
	owner, err := splitDot(name)
	if err != nil {
		return nil, err
	}
	if string(who) != owner && who != administrator {
		return nil, errs.New(errs.NotAllowed, "only the owner %s may do that with %s", owner, name)
	}
	var rec dotRecord
	ok, err := getJSON(tx, bucketDots, name, &rec)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "there is no dot %s", name)
	}
	return &rec, err
}

// share changes what a user may do with a dot.
func (h *Hub) share(who asker, name string, s hubproto.Share) error {
	switch s.Access {
	case hubproto.None, hubproto.Read, hubproto.Write:
	default:
		return errs.New(errs.Usage, "unknown access '%.20s': it is none, read or write", s.Access)
	}
	err := h.db.Update(func(tx *bbolt.Tx) error {
		rec, err := owned(tx, who, name)
		if err != nil {
			return err
		}
		if s.User == hubproto.Everyone {
			if s.Access == hubproto.Write {
				return errs.New(errs.Usage, "everyone may at most read")
			}
			rec.Public = s.Access == hubproto.Read
			return putJSON(tx, bucketDots, name, rec)
		}
		if ok, err := getJSON(tx, bucketUsers, s.User, &userRecord{}); (err != nil || !ok) && s.Access != hubproto.None {
			return noUser(s.User, err)
		}
		if rec.Shares == nil {
			rec.Shares = map[string]hubproto.Access{}
		}
		if rec.Shares[s.User] = s.Access; s.Access == hubproto.None {
			delete(rec.Shares, s.User)
		}
		return putJSON(tx, bucketDots, name, rec)
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
