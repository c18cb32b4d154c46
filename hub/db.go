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
	"dm/remote/hubproto"
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

// dotRecord is what is known of a dot.
type dotRecord struct {
	ID      string                     `json:"id"`
	Created time.Time                  `json:"created"`
	Public  bool                       `json:"public,omitempty"`
	Shares  map[string]hubproto.Access `json:"shares,omitempty"`
}

var (
	nameRE = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)
	refRE  = regexp.MustCompile(`^(heads|tags)/[a-zA-Z0-9_-]{1,64}$`)
)

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

// hasRefs says whether a dot exists for its users.
func hasRefs(tx *bbolt.Tx, dotID string) bool {
	k, _ := tx.Bucket([]byte(bucketRefs)).Cursor().Seek([]byte(refPrefix(dotID)))
	return k != nil && strings.HasPrefix(string(k), refPrefix(dotID))
}
