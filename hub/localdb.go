package hub

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"dm/internal/errs"
	"dm/object"
)

// The buckets of hub.db.
const (
	bucketUsers   = "users"   // name: userRecord
	bucketDots    = "dots"    // NAMESPACE/DOT: dotRecord
	bucketRefs    = "refs"    // id of the dot, "/", ref: id of the commit
	bucketMembers = "members" // id of the dot: bucket of object id: kind, 1 byte
	bucketHub     = "hub"     // "version": formatVersion
)

const formatVersion = "1"

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// openWait is how long another process has to give the file up, in a restart for instance.
const openWait = 2 * time.Second

func openDB(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: openWait, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errs.New(errs.Conflict, "hub database %s is in use by another process", path)
	}
	if err != nil {
		return nil, errs.New(errs.Damaged, "open hub database %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketUsers, bucketDots, bucketRefs, bucketMembers, bucketHub} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		b := tx.Bucket([]byte(bucketHub))
		switch v := b.Get([]byte("version")); {
		case v == nil:
			return b.Put([]byte("version"), []byte(formatVersion))
		case string(v) != formatVersion:
			return errs.WithHint(errs.New(errs.Usage, "hub database %s has format %q; this dm knows %s", path, v, formatVersion),
				"install a newer dm")
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// getJSON reads a record; ok is false where there is none.
func getJSON(tx *bbolt.Tx, bucket, key string, v any) (ok bool, err error) {
	b := tx.Bucket([]byte(bucket)).Get([]byte(key))
	if b == nil {
		return false, nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, errs.New(errs.Damaged, "hub database: %s %q cannot be read: %w", bucket, key, err)
	}
	return true, nil
}

func putJSON(tx *bbolt.Tx, bucket, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(bucket)).Put([]byte(key), b)
}

// members returns the set of a dot's objects, nil where there is none.
func members(tx *bbolt.Tx, dotID string) *bbolt.Bucket {
	return tx.Bucket([]byte(bucketMembers)).Bucket([]byte(dotID))
}

func refPrefix(dotID string) string { return dotID + "/" }

// refsOf returns all refs of a dot.
func refsOf(tx *bbolt.Tx, dotID string) map[string]object.ID {
	refs := map[string]object.ID{}
	c := tx.Bucket([]byte(bucketRefs)).Cursor()
	prefix := refPrefix(dotID)
	for k, v := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
		var id object.ID
		copy(id[:], v)
		refs[string(k)[len(prefix):]] = id
	}
	return refs
}

// boltAccounts is the accounts in one transaction of hub.db.
type boltAccounts struct{ tx *bbolt.Tx }

func (a boltAccounts) user(name string) (*userRecord, error) {
	var u userRecord
	ok, err := getJSON(a.tx, bucketUsers, name, &u)
	if err != nil || !ok {
		return nil, err
	}
	return &u, nil
}

func (a boltAccounts) putUser(name string, u *userRecord) error {
	return putJSON(a.tx, bucketUsers, name, u)
}

func (a boltAccounts) removeUser(name string) error {
	return a.tx.Bucket([]byte(bucketUsers)).Delete([]byte(name))
}

func (a boltAccounts) eachUser(fn func(name string, u *userRecord) error) error {
	return a.tx.Bucket([]byte(bucketUsers)).ForEach(func(k, _ []byte) error {
		u, err := a.user(string(k))
		if err != nil {
			return err
		}
		return fn(string(k), u)
	})
}

func (a boltAccounts) dot(name string) (*dotRecord, error) {
	var d dotRecord
	ok, err := getJSON(a.tx, bucketDots, name, &d)
	if err != nil || !ok {
		return nil, err
	}
	return &d, nil
}

func (a boltAccounts) putDot(name string, d *dotRecord) error {
	if _, err := a.tx.Bucket([]byte(bucketMembers)).CreateBucketIfNotExists([]byte(d.ID)); err != nil {
		return err
	}
	return putJSON(a.tx, bucketDots, name, d)
}

// removeDot removes a dot with its refs and members. Its objects stay in the store, and in other dots.
func (a boltAccounts) removeDot(name string, d *dotRecord) error {
	for ref := range refsOf(a.tx, d.ID) {
		if err := a.tx.Bucket([]byte(bucketRefs)).Delete([]byte(refPrefix(d.ID) + ref)); err != nil {
			return err
		}
	}
	if err := a.tx.Bucket([]byte(bucketMembers)).DeleteBucket([]byte(d.ID)); err != nil {
		return err
	}
	return a.tx.Bucket([]byte(bucketDots)).Delete([]byte(name))
}

func (a boltAccounts) eachDot(namespace string, fn func(name string, d *dotRecord) error) error {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	c := a.tx.Bucket([]byte(bucketDots)).Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
		d, err := a.dot(string(k))
		if err != nil {
			return err
		}
		if err := fn(string(k), d); err != nil {
			return err
		}
	}
	return nil
}
