package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dm/api"
)

// keepFlags is the rule of verbs that thin out commits.
type keepFlags struct{ rule api.KeepRule }

func (k *keepFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&k.rule.Last, "keep-last", 0, "keep the newest `N` commits")
	f.IntVar(&k.rule.Hourly, "keep-hourly", 0, "keep the last commit of each of the newest `N` hours (UTC) that have commits")
	f.IntVar(&k.rule.Daily, "keep-daily", 0, "the same for `N` days")
	f.IntVar(&k.rule.Weekly, "keep-weekly", 0, "the same for `N` weeks, which begin on Monday")
	f.IntVar(&k.rule.Monthly, "keep-monthly", 0, "the same for `N` months")
}

type pruneCmd struct {
	dotFlag
	listing
	keepFlags
	all    bool
	dryRun bool
}

func newPrune(a *app) *cobra.Command {
	c := &pruneCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Thin out the commits of the branch by a rule and free their space; ids and parents of the others stay",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	c.keepFlags.register(cmd)
	cmd.Flags().BoolVar(&c.all, "all-branches", false, "all branches of the dot, each by the rule; otherwise what other branches have is kept")
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "only say what would go, and how much space that would free")
	return cmd
}

func (c *pruneCmd) run(cmd *cobra.Command, _ []string) error {
	if c.rule == (api.KeepRule{}) {
		return usage(cmd, "say which commits to keep, with one or more of the --keep options")
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	p := newProgress(c.err)
	r, err := server.Prune(cmd.Context(), api.PruneRequest{Dot: dot, Keep: c.rule, All: c.all, DryRun: c.dryRun}, p.show)
	p.end()
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	return c.print(r)
}

func (c *pruneCmd) print(r api.PruneResult) error {
	verdict, kept := "pruned", "kept"
	if r.DryRun {
		verdict, kept = "would prune", "keep"
	}
	type row struct {
		api.PrunedCommit
		verdict string
	}
	var rows []row
	for _, ci := range r.Pruned {
		rows = append(rows, row{ci, verdict})
	}
	for _, ci := range r.Kept {
		rows = append(rows, row{ci, "kept"})
	}
	slices.SortStableFunc(rows, func(x, y row) int { return x.Time.Compare(y.Time) })
	var lines [][]string
	for _, ci := range rows {
		at, why := ci.Time.UTC().Format(time.RFC3339), strings.Join(ci.Why, ",")
		subject, _, _ := strings.Cut(ci.Message, "\n")
		if c.scripting {
			if err := scriptLine(c.out, ci.verdict, ci.ID, at, why, subject); err != nil {
				return err
			}
			continue
		}
		lines = append(lines, []string{ci.verdict, ci.ID[:12], at, why, oneLine(subject)})
	}
	if c.scripting {
		return nil
	}
	if err := table(c.out, lines); err != nil {
		return err
	}
	freed := "freed"
	if r.DryRun {
		freed = "would free about"
	}
	_, err := fmt.Fprintf(c.out, "%s %d commits and %s %d, %s %s\n", verdict, len(r.Pruned), kept, len(r.Kept), freed, amount(r.Freed, true))
	sayNoRoom(c.err, r.NoRoom)
	return written(err)
}
