package dot

import (
	"context"
	"encoding/json"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// dotRecord is what the store's metadata holds of a dot, under dots/ID.
type dotRecord struct {
	ID        string     `json:"id"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Created   time.Time  `json:"created"`
	Branch    string     `json:"branch"` // the current one
	Cache     CacheMode  `json:"cache,omitempty"`
	Upstreams []Upstream `json:"upstreams,omitempty"`
	Origin    *Origin    `json:"origin,omitempty"` // of a lazy dot
}

// branchRecord is what the metadata holds of a branch, under branches/ID/BRANCH. Where its commit is, a ref says.
type branchRecord struct {
	Copy string `json:"copy"` // the id of its working copy
	// Ready is set when the working copy's directory has been made. Until then nothing can have been written to it,
	// and whatever a crash left of it is made anew.
	Ready bool `json:"ready,omitempty"`
	// Count is the number of commits that lead to CountOf, kept so that a listing need not walk them.
	Count   uint64 `json:"count,omitempty"`
	CountOf string `json:"count_of,omitempty"`
}

func nameKey(n Name) string                      { return "names/" + n.Namespace + "/" + n.Dot }
func dotKey(id string) string                    { return "dots/" + id }
func branchPrefix(id string) string              { return "branches/" + id + "/" }
func branchKey(id, branch string) string         { return branchPrefix(id) + branch }
func trashKey(copyID string) string              { return trashPrefix + copyID }
func headPrefix(id string) string                { return "dots/" + id + "/heads/" }
func headRef(id, branch string) string           { return headPrefix(id) + branch }
func tagPrefix(id string) string                 { return "dots/" + id + "/tags/" }
func tagRef(id, tag string) string               { return tagPrefix(id) + tag }
func (r *dotRecord) name() Name                  { return Name{Namespace: r.Namespace, Dot: r.Name} }
func (b *branchRecord) counts(id object.ID) bool { return b.CountOf == hexOrEmpty(id) }

const (
	namePrefix  = "names/"
	trashPrefix = "trash/"
)

// hexOrEmpty writes a commit's id as the model does: nothing for none.
func hexOrEmpty(id object.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// getJSON reads a record; ok is false where there is none.
func getJSON(tx *store.Tx, key string, v any) (ok bool, err error) {
	b, ok := tx.Meta(key)
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, errs.New(errs.Damaged, "metadata %s cannot be read: %w", key, err)
	}
	return true, nil
}

func setJSON(tx *store.Tx, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.SetMeta(key, b)
}

// getDot finds a dot by its name.
func getDot(tx *store.Tx, n Name) (*dotRecord, error) {
	id, ok := tx.Meta(nameKey(n))
	if !ok {
		return nil, errs.WithHint(errs.New(errs.NotFound, "Dot %s does not exist.", n.DotName()), "list the dots with 'dm list'")
	}
	r := &dotRecord{}
	ok, err := getJSON(tx, dotKey(string(id)), r)
	if err == nil && !ok {
		err = errs.New(errs.Damaged, "dot %s has a name but no record", n.DotName())
	}
	return r, err
}

// branchState is a branch as one transaction sees it.
type branchState struct {
	dot  dotRecord
	name string
	rec  branchRecord
	tip  object.ID // zero: nothing has been committed
}

func (b *branchState) key() string { return branchKey(b.dot.ID, b.name) }
func (b *branchState) ref() string { return headRef(b.dot.ID, b.name) }

// getBranch finds the branch that a name means.
func getBranch(tx *store.Tx, n Name) (*branchState, error) {
	r, err := getDot(tx, n)
	if err != nil {
		return nil, err
	}
	b := &branchState{dot: *r, name: n.Branch}
	if b.name == "" {
		b.name = r.Branch
	}
	ok, err := getJSON(tx, b.key(), &b.rec)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, noBranch(b.name)
	}
	b.tip, _ = tx.Ref(b.ref())
	return b, nil
}

func noBranch(name string) error {
	return errs.WithHint(errs.New(errs.NotFound, "Branch does not exist: %s", name), "list the branches with 'dm branch'")
}

// branch reads the branch that a name means.
func (d *Dots) branch(ctx context.Context, n Name) (b *branchState, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = d.store.View(func(tx *store.Tx) error {
		b, err = getBranch(tx, n)
		return err
	})
	return b, err
}

// branchesOf returns all branches of a dot in order of names.
func branchesOf(tx *store.Tx, r *dotRecord) (list []branchState, err error) {
	for key, value := range tx.Metas(branchPrefix(r.ID)) {
		b := branchState{dot: *r, name: key[len(branchPrefix(r.ID)):]}
		if err := json.Unmarshal(value, &b.rec); err != nil {
			return nil, errs.New(errs.Damaged, "metadata %s cannot be read: %w", key, err)
		}
		b.tip, _ = tx.Ref(b.ref())
		list = append(list, b)
	}
	return list, nil
}
