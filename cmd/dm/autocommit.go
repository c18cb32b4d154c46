package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"dm/api"
)

type autoCommitCmd struct {
	*app
	keepFlags
	every   time.Duration
	ifDirty bool
	off     bool
}

func newAutoCommit(a *app) *cobra.Command {
	c := &autoCommitCmd{app: a}
	cmd := &cobra.Command{
		Use:   "auto-commit <dot> (--every TIME | --off)",
		Short: "Have the server commit a dot's current branch at intervals, and thin out those commits by a rule",
		Long: "Have the server commit a dot's current branch at intervals. The setting stays over restarts; 'dm dot show' has it, and\n" +
			"how it went last. Hooks of containers run as with 'dm commit'; where one fails there is no commit at that time. With --keep options only automatic commits are thinned out: those that users made stay.",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	c.keepFlags.register(cmd)
	cmd.Flags().DurationVar(&c.every, "every", 0, "the `TIME` between commits, such as 10m or 1h30m")
	cmd.Flags().BoolVar(&c.ifDirty, "if-dirty", false, "not where nothing has changed since the last commit")
	cmd.Flags().BoolVar(&c.off, "off", false, "no automatic commits any more")
	for _, name := range []string{"every", "if-dirty", "keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly"} {
		oneOf(cmd, "off", name)
	}
	return cmd
}

func (c *autoCommitCmd) run(cmd *cobra.Command, args []string) error {
	if !c.off && !cmd.Flags().Changed("every") {
		return usage(cmd, "say how often, with --every, or end it with --off")
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	req := api.AutoCommitRequest{Dot: args[0], Off: c.off}
	if !c.off {
		req.Every, req.IfDirty, req.Keep = c.every.String(), c.ifDirty, c.rule
	}
	return server.SetAutoCommit(cmd.Context(), req)
}

// autoFields is what `dm dot show` says of automatic commits.
func autoFields(a *api.AutoCommit) [][2]string {
	if a == nil {
		return nil
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	return [][2]string{
		{"auto-commit.every", a.Every},
		{"auto-commit.if-dirty", strconv.FormatBool(a.IfDirty)},
		{"auto-commit.keep", a.Rule},
		{"auto-commit.next", at(a.Next)},
		{"auto-commit.last", at(a.Last)},
		{"auto-commit.commit", a.Commit},
		{"auto-commit.error", a.Error},
	}
}
