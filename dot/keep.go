package dot

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/object"
)

// KeepRule says which commits of a branch a prune keeps: the newest Last, and of each of the newest Hourly hours, Daily days,
// Weekly weeks and Monthly months that have commits the newest one. A commit that any part keeps stays. Periods are those of
// UTC, as in the log; weeks begin on Monday (ISO 8601).
type KeepRule struct {
	Last    int `json:"last,omitempty"`
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
}

// IsZero says whether the rule keeps nothing: then there is none.
func (k KeepRule) IsZero() bool { return k == KeepRule{} }

// Check refuses a rule with which nothing can be meant.
func (k KeepRule) Check() error {
	if slices.Min([]int{k.Last, k.Hourly, k.Daily, k.Weekly, k.Monthly}) < 0 {
		return errs.New(errs.Usage, "a number of commits to keep cannot be below zero")
	}
	if k.IsZero() {
		return errs.WithHint(errs.New(errs.Usage, "it is not said which commits to keep"),
			"say it with --keep-last, --keep-hourly, --keep-daily, --keep-weekly or --keep-monthly")
	}
	return nil
}

// String writes the rule as its options.
func (k KeepRule) String() string {
	var parts []string
	for _, p := range k.parts() {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("--keep-%s %d", p.name, p.n))
		}
	}
	return strings.Join(parts, " ")
}

// keepPart is one part of a rule: the newest commit of each of n periods stays. The period of a commit has a name of its own.
type keepPart struct {
	name   string
	n      int
	period func(i int, t time.Time) string
}

func (k KeepRule) parts() []keepPart {
	layout := func(l string) func(int, time.Time) string {
		return func(_ int, t time.Time) string { return t.Format(l) }
	}
	return []keepPart{
		{"last", k.Last, func(i int, _ time.Time) string { return fmt.Sprint(i) }},
		{"hourly", k.Hourly, layout("2006-01-02 15")},
		{"daily", k.Daily, layout("2006-01-02")},
		{"weekly", k.Weekly, func(_ int, t time.Time) string {
			y, w := t.ISOWeek()
			return fmt.Sprint(y, " ", w)
		}},
		{"monthly", k.Monthly, layout("2006-01")},
	}
}

// dated is a commit and when it was made.
type dated struct {
	id   object.ID
	at   time.Time
	auto bool // made by itself
}

// keeps returns which of the commits, the newest first, stay and because of what.
func (k KeepRule) keeps(commits []dated) map[object.ID][]string {
	kept := map[object.ID][]string{}
	for _, p := range k.parts() {
		last, n := "", 0
		for i, c := range commits {
			if n == p.n {
				break
			}
			if period := p.period(i, c.at.UTC()); period != last || n == 0 {
				last = period
				n++
				kept[c.id] = append(kept[c.id], p.name)
			}
		}
	}
	return kept
}
