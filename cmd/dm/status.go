package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

type statusCmd struct {
	dotFlag
	listing
}

func newStatus(a *app) *cobra.Command {
	c := &statusCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show per subdot its size, what changed since the commit, and who uses it",
		Long: "Show per subdot its size, what changed since the commit, and who uses it.\n\n" +
			"DIRTY is the bytes written since the commit, in blocks of 4096; a file of which only a name or an attribute changed\n" +
			"counts as one block. What 'dm restore' brought back is compared with the commit without reading it: a file counts\n" +
			"with the chunks that differ, a small file thus as a whole. CHANGED counts the files.",
		Args: argCount(0, 0),
		RunE: c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	return cmd
}

func (c *statusCmd) run(cmd *cobra.Command, _ []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	st, err := server.Status(cmd.Context(), api.DotRequest{Dot: dot})
	if err != nil {
		return err
	}
	switch {
	case c.json:
		return writeJSON(c.out, st)
	case c.scripting:
		for _, s := range st.Subdots {
			if err := scriptLine(c.out, s.Name, s.Size, s.Dirty, s.Changed, strings.Join(s.Containers, ",")); err != nil {
				return err
			}
		}
		return nil
	}
	head := st.Head
	if head == "" {
		head = "no commit yet"
	}
	fmt.Fprintf(c.out, "Dot %s on branch %s (%s)\n\n", st.Dot, st.Branch, head)
	rows := [][]string{{"SUBDOT", "SIZE", "DIRTY", "CHANGED", "CONTAINERS"}}
	for _, s := range append(st.Subdots, st.Total) {
		rows = append(rows, []string{
			s.Name, size(s.Size), size(s.Dirty), strconv.FormatInt(s.Changed, 10), strings.Join(s.Containers, ","),
		})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	sayNote(c.err, st.Note)
	// Counted for the whole: a backing file does not know its subdot.
	_, err = fmt.Fprintf(c.out, "\nlocal: %s\n", size(st.Total.Local))
	return written(err)
}
