package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"time"

	"dm/internal/errs"
)

// User is a user in a listing.
type User struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Dots    int       `json:"dots"`
}

const keyPrefix = "dmk_"

func newKey() (key string, hash []byte) {
	var b [32]byte
	rand.Read(b[:])
	key = keyPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return key, hashKey(key)
}

func hashKey(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:]
}

func checkUser(name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return errs.New(errs.Usage, "invalid user name '%.100s': use letters, digits, '_' and '-', at most 64", name)
}

// AddUser makes a user and returns the key, which nobody can find out later. There is one of that name: Conflict.
func (h *Hub) AddUser(ctx context.Context, name string) (key string, err error) {
	if err := checkUser(name); err != nil {
		return "", err
	}
	key, hash := newKey()
	now := time.Now().UTC()
	err = h.engine.change(ctx, func(a accounts) error {
		if u, err := a.user(name); err != nil {
			return err
		} else if u != nil {
			return errs.WithHint(errs.New(errs.Conflict, "user %s exists already", name), "a new key: 'dm hub user key %s'", name)
		}
		return a.putUser(name, &userRecord{Hash: hash, Created: now, Keyed: now})
	})
	if err != nil {
		return "", err
	}
	h.audit(administrator.name(), "user added", "name", name)
	return key, nil
}

// NewKey gives a user a new key; the old one is void.
func (h *Hub) NewKey(ctx context.Context, name string) (key string, err error) {
	key, hash := newKey()
	err = h.engine.change(ctx, func(a accounts) error {
		u, err := a.user(name)
		if err != nil || u == nil {
			return noUser(name, err)
		}
		u.Hash, u.Keyed = hash, time.Now().UTC()
		return a.putUser(name, u)
	})
	if err != nil {
		return "", err
	}
	h.audit(administrator.name(), "key changed", "name", name)
	return key, nil
}

func noUser(name string, err error) error {
	if err != nil {
		return err
	}
	return errs.WithHint(errs.New(errs.NotFound, "there is no user %.100s", name), "list them with 'dm hub user list'")
}

// RemoveUser removes a user, and what was shared with that user: who gets the name later must not get that. One who still
// has dots stays: Conflict.
func (h *Hub) RemoveUser(ctx context.Context, name string) error {
	err := h.engine.change(ctx, func(a accounts) error {
		u, err := a.user(name)
		if err != nil || u == nil {
			return noUser(name, err)
		}
		n, last, err := dotsOf(a, name)
		if err != nil {
			return err
		}
		if n > 0 {
			return errs.WithHint(errs.New(errs.Conflict, "user %s still has %d dots, %s among them", name, n, last),
				"delete them as that user ('dm dot delete --remote REMOTE %s'), or lock the user out with a new key", last)
		}
		if err := unshare(a, name); err != nil {
			return err
		}
		return a.removeUser(name)
	})
	if err != nil {
		return err
	}
	h.audit(administrator.name(), "user removed", "name", name)
	return nil
}

// unshare takes all that others have shared with a user back.
func unshare(a accounts, user string) error {
	shared := map[string]*dotRecord{}
	err := a.eachDot("", func(dot string, rec *dotRecord) error {
		if _, ok := rec.Shares[user]; ok {
			shared[dot] = rec
		}
		return nil
	})
	for dot, rec := range shared {
		delete(rec.Shares, user)
		if err := a.putDot(dot, rec); err != nil {
			return err
		}
	}
	return err
}

// Users lists all users in order of names.
func (h *Hub) Users(ctx context.Context) (list []User, err error) {
	err = h.engine.look(ctx, func(a accounts) error {
		list = nil
		return a.eachUser(func(name string, u *userRecord) error {
			n, _, err := dotsOf(a, name)
			list = append(list, User{Name: name, Created: u.Created, Dots: n})
			return err
		})
	})
	return list, err
}

// authentic says whether a key is the user's. An unknown user takes as long as a wrong key. It fails where that cannot be
// found out.
func (h *Hub) authentic(ctx context.Context, name, key string) (bool, error) {
	want := make([]byte, sha256.Size)
	known := false
	err := h.engine.look(ctx, func(a accounts) error {
		u, err := a.user(name)
		if u != nil && len(u.Hash) == sha256.Size {
			known, want = true, u.Hash
		}
		return err
	})
	return subtle.ConstantTimeCompare(hashKey(key), want) == 1 && known && err == nil, err
}
