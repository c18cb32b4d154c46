package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dm/api"
)

type logCmd struct {
	dotFlag
	listing
	limit   int
	oneline bool
}

func newLog(a *app) *cobra.Command {
	c := &logCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "log [revision]",
		Short: "List the commits that led to a revision, oldest first",
		Args:  argCount(0, 1),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	cmd.Flags().IntVarP(&c.limit, "max-count", "n", 0, "only the newest `N` commits")
	cmd.Flags().BoolVar(&c.oneline, "oneline", false, "one line per commit")
	oneOf(cmd, "oneline", "scripting")
	oneOf(cmd, "oneline", "json")
	return cmd
}

func (c *logCmd) run(cmd *cobra.Command, args []string) error {
	if cmd.Flags().Changed("max-count") && c.limit < 1 {
		return usage(cmd, "-n %d: the number of commits must be at least 1", c.limit)
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	req := api.LogRequest{Dot: dot, Limit: c.limit}
	if len(args) == 1 {
		req.Revision = args[0]
	}
	w := bufio.NewWriter(c.out)
	all := []api.Commit{}
	err = server.Log(cmd.Context(), req, func(ci api.Commit) error {
		switch {
		case c.json:
			all = append(all, ci)
			return nil
		case c.scripting:
			return scriptLine(w, ci.ID, ci.Time.UTC().Format(time.RFC3339Nano), ci.Author, ci.Message)
		case c.oneline:
			subject, _, _ := strings.Cut(ci.Message, "\n")
			_, err := fmt.Fprintf(w, "%.12s %s\n", ci.ID, subject)
			return written(err)
		}
		return writeCommit(w, ci)
	})
	if err != nil {
		return err
	}
	if c.json {
		if err := writeJSON(w, all); err != nil {
			return err
		}
	}
	return written(w.Flush())
}

// writeCommit writes a commit as `dm log` shows it. A line of the message never begins in the first column, so it cannot
// pose as a header.
func writeCommit(w io.Writer, c api.Commit) error {
	var b strings.Builder
	fmt.Fprintf(&b, "commit %s\nauthor: %s\ndate: %s\n", c.ID, oneLine(c.Author), c.Time.UTC().Format(time.RFC3339Nano))
	for _, k := range slices.Sorted(maps.Keys(c.Meta)) {
		fmt.Fprintf(&b, "%s: %s\n", oneLine(k), oneLine(c.Meta[k]))
	}
	b.WriteString("\n")
	for line := range strings.Lines(strings.TrimRight(c.Message, "\n") + "\n") {
		b.WriteString("    " + line)
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return written(err)
}
