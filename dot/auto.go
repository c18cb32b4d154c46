package dot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/store"
)

// MinAutoEvery is the shortest time between automatic commits of a dot.
const MinAutoEvery = time.Second

// AutoCommit says when and how a dot is committed by itself, and how that went last. It is in the metadata under auto/ID.
type AutoCommit struct {
	Every   time.Duration `json:"every"`    // nanoseconds
	IfDirty bool          `json:"if_dirty"` // not where nothing has changed since the last commit
	// Keep thins out the automatic commits of the branch after each; those that users made stay. Zero: all stay.
	Keep KeepRule `json:"keep"`

	Since  time.Time `json:"since"`  // of this setting
	Last   time.Time `json:"last"`   // when it was due last; zero: never yet
	Commit string    `json:"commit"` // the last one it made, empty for none
	Error  string    `json:"error"`  // why it went wrong last; empty: it did not
}

// systemAuto is the key of a commit's system notes by which automatic commits are known. Its value is the time between them.
const systemAuto = "auto-commit"

const autoPrefix = "auto/"

func autoKey(dotID string) string { return autoPrefix + dotID }

// Due returns when the next commit is to be made. One that was missed, because the server did not run, is made at once.
func (a *AutoCommit) Due() time.Time {
	if a.Last.IsZero() {
		return a.Since.Add(a.Every)
	}
	return a.Last.Add(a.Every)
}

func (a *AutoCommit) check() error {
	if a.Every < MinAutoEvery {
		return errs.WithHint(errs.New(errs.Usage, "%v is too short a time between automatic commits", a.Every),
			"the shortest is %v", MinAutoEvery)
	}
	if a.Keep.IsZero() {
		return nil
	}
	return a.Keep.Check()
}

// SetAutoCommit has a dot's current branch committed at intervals from now on; nil ends that.
func (d *Dots) SetAutoCommit(ctx context.Context, n Name, a *AutoCommit) error {
	if a != nil {
		if err := a.check(); err != nil {
			return err
		}
		set := *a
		set.Since, set.Last, set.Commit, set.Error = d.now().UTC(), time.Time{}, "", ""
		a = &set
	}
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		if a == nil {
			return tx.SetMeta(autoKey(r.ID), nil)
		}
		return setJSON(tx, autoKey(r.ID), a)
	})
}

// AutoCommit returns a dot's setting, or nil.
func (d *Dots) AutoCommit(ctx context.Context, n Name) (a *AutoCommit, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		got := &AutoCommit{}
		ok, err := getJSON(tx, autoKey(r.ID), got)
		if ok {
			a = got
		}
		return err
	})
	return a, err
}

// AutoCommits returns when each dot that is committed by itself is due, by the dot's id.
func (d *Dots) AutoCommits() (due map[string]time.Time, err error) {
	due = map[string]time.Time{}
	err = d.store.View(func(tx *store.Tx) error {
		for key := range tx.Metas(autoPrefix) {
			var a AutoCommit
			if _, err := getJSON(tx, key, &a); err != nil {
				return err
			}
			due[strings.TrimPrefix(key, autoPrefix)] = a.Due()
		}
		return nil
	})
	return due, err
}

// AutoResult says what a run of an automatic commit did.
type AutoResult struct {
	Name   Name
	Commit *CommitResult // nil: nothing had changed
	Pruned int           // commits given up
}

// Committer commits a dot as Dots.Commit does.
type Committer func(context.Context, Name, CommitRequest) (*CommitResult, error)

// RunAutoCommit makes the automatic commit of a dot that is due, thins out what was made before, and notes how it went. The dot
// is gone, or not committed by itself any more: nothing happens. It commits with commit, which is Commit or calls it; an error
// may come with a commit that is there all the same.
func (d *Dots) RunAutoCommit(ctx context.Context, dotID string, commit Committer) (*AutoResult, error) {
	var a AutoCommit
	var r dotRecord
	found := false
	err := d.store.View(func(tx *store.Tx) error {
		ok, err := getJSON(tx, autoKey(dotID), &a)
		if err != nil || !ok {
			return err
		}
		found, err = getJSON(tx, dotKey(dotID), &r)
		return err
	})
	if err != nil || !found {
		return &AutoResult{}, err
	}
	now := d.now().UTC()
	res, err := d.runAuto(ctx, r.name(), &a, commit)
	if ctx.Err() != nil {
		return res, err // the server stops: it is due again at the next start
	}
	noted := d.store.Update(func(tx *store.Tx) error {
		var cur AutoCommit
		if ok, err := getJSON(tx, autoKey(dotID), &cur); err != nil || !ok || !cur.Since.Equal(a.Since) {
			return err // set anew meanwhile
		}
		cur.Last, cur.Error = now, ""
		if err != nil {
			cur.Error = err.Error()
		}
		if res.Commit != nil {
			cur.Commit = res.Commit.Commit
		}
		return setJSON(tx, autoKey(dotID), &cur)
	})
	return res, errors.Join(err, noted)
}

func (d *Dots) runAuto(ctx context.Context, n Name, a *AutoCommit, commit Committer) (*AutoResult, error) {
	res := &AutoResult{Name: n}
	if a.IfDirty {
		err := d.mustBeClean(ctx, n)
		if err == nil {
			return res, nil
		}
		if errs.KindOf(err) != errs.Conflict {
			return res, err
		}
	}
	var err error
	res.Commit, err = commit(ctx, n, CommitRequest{
		Message: "automatic commit", Author: "dm", System: map[string]string{systemAuto: a.Every.String()},
	})
	if err != nil || a.Keep.IsZero() {
		return res, err
	}
	n.Branch = res.Commit.Branch
	pruned, err := d.Prune(ctx, n, PruneRequest{Keep: a.Keep, OnlyAuto: true})
	if err != nil {
		return res, fmt.Errorf("prune automatic commits: %w", err)
	}
	res.Pruned = len(pruned.Pruned)
	return res, nil
}
