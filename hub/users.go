package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
)

// userRecord is what is known of a user. The key itself is not kept: it has 256 random bits, so that a plain hash of it
// cannot be turned back.
type userRecord struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the key
	Created time.Time `json:"created"`
	Keyed   time.Time `json:"keyed"` // when the key was made
}

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
func (h *Hub) AddUser(_ context.Context, name string) (key string, err error) {
	if err := checkUser(name); err != nil {
		return "", err
	}
	key, hash := newKey()
	now := time.Now().UTC()
	err = h.db.Update(func(tx *bbolt.Tx) error {
		if ok, err := getJSON(tx, bucketUsers, name, &userRecord{}); err != nil || ok {
			return errs.WithHint(errs.New(errs.Conflict, "user %s exists already: %w", name, err), "a new key: 'dm hub user key %s'", name)
		}
		return putJSON(tx, bucketUsers, name, &userRecord{Hash: hash, Created: now, Keyed: now})
	})
	if err != nil {
		return "", err
	}
	h.audit("", "user added", "name", name)
	return key, nil
}

// NewKey gives a user a new key; the old one is void.
func (h *Hub) NewKey(_ context.Context, name string) (key string, err error) {
	key, hash := newKey()
	err = h.db.Update(func(tx *bbolt.Tx) error {
		var u userRecord
		if ok, err := getJSON(tx, bucketUsers, name, &u); err != nil || !ok {
			return noUser(name, err)
		}
		u.Hash, u.Keyed = hash, time.Now().UTC()
		return putJSON(tx, bucketUsers, name, &u)
	})
	if err != nil {
		return "", err
	}
	h.audit("", "key changed", "name", name)
	return key, nil
}

func noUser(name string, err error) error {
	if err != nil {
		return err
	}
	return errs.WithHint(errs.New(errs.NotFound, "there is no user %.100s", name), "list them with 'dm hub user list'")
}

// RemoveUser removes a user. One who still has dots stays: Conflict.
func (h *Hub) RemoveUser(_ context.Context, name string) error {
	err := h.db.Update(func(tx *bbolt.Tx) error {
		if ok, err := getJSON(tx, bucketUsers, name, &userRecord{}); err != nil || !ok {
			return noUser(name, err)
		}
		if n := dotsOf(tx, name); n > 0 {
			return errs.WithHint(errs.New(errs.Conflict, "user %s still has %d dots", name, n), "delete them first; a new key locks the user out")
		}
		return tx.Bucket([]byte(bucketUsers)).Delete([]byte(name))
	})
	if err != nil {
		return err
	}
	h.audit("", "user removed", "name", name)
	return nil
}

// Users lists all users in order of names.
func (h *Hub) Users(context.Context) (list []User, err error) {
	err = h.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketUsers)).ForEach(func(k, _ []byte) error {
			var u userRecord
			if _, err := getJSON(tx, bucketUsers, string(k), &u); err != nil {
				return err
			}
			list = append(list, User{Name: string(k), Created: u.Created, Dots: dotsOf(tx, string(k))})
			return nil
		})
	})
	return list, err
}

// authentic says whether a key is the user's. An unknown user takes as long as a wrong key.
func (h *Hub) authentic(name, key string) bool {
	want := make([]byte, sha256.Size)
	known := false
	err := h.db.View(func(tx *bbolt.Tx) error {
		var u userRecord
		ok, err := getJSON(tx, bucketUsers, name, &u)
		if ok && len(u.Hash) == sha256.Size {
			known = true
			want = u.Hash
		}
		return err
	})
	return subtle.ConstantTimeCompare(hashKey(key), want) == 1 && known && err == nil
}
