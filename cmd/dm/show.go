package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

type showCmd struct {
	dotFlag
	listing
}

func newShow(a *app) *cobra.Command {
	c := &showCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "show <revision>",
		Short: "Show a commit with what it changed in each subdot",
		Args:  argCount(1, 1),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	return cmd
}

func (c *showCmd) run(cmd *cobra.Command, args []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	r, err := server.Show(cmd.Context(), api.RevisionRequest{Dot: dot, Revision: args[0]})
	if err != nil {
		return err
	}
	switch {
	case c.json:
		return writeJSON(c.out, r)
	case c.scripting:
		for _, s := range r.Subdots {
			if err := scriptLine(c.out, s.Name, s.Added, s.Modified, s.Removed, s.Renamed, s.Bytes); err != nil {
				return err
			}
		}
		return nil
	}
	if err := writeCommit(c.out, r.Commit); err != nil {
		return err
	}
	rows := [][]string{{"SUBDOT", "ADDED", "MODIFIED", "REMOVED", "RENAMED", "BYTES"}}
	for _, s := range r.Subdots {
		rows = append(rows, []string{
			s.Name, strconv.FormatInt(s.Added, 10), strconv.FormatInt(s.Modified, 10), strconv.FormatInt(s.Removed, 10),
			strconv.FormatInt(s.Renamed, 10), size(s.Bytes),
		})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	return c.containers(r.Commit.System)
}

// containers writes which containers used which subdot when the commit was made, and of which images they were.
func (c *showCmd) containers(notes map[string]string) error {
	rows := [][]string{{"SUBDOT", "CONTAINER", "IMAGE", "DIGEST"}}
	for _, key := range slices.Sorted(maps.Keys(notes)) {
		subdot, ok := strings.CutPrefix(key, "container.")
		if !ok {
			continue
		}
		images, digests := strings.Split(notes["image."+subdot], ","), strings.Split(notes["digest."+subdot], ",")
		for i, name := range strings.Split(notes[key], ",") {
			row := []string{subdot, oneLine(name), "", ""}
			if i < len(images) && i < len(digests) {
				row[2], row[3] = oneLine(images[i]), oneLine(digests[i])
			}
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 {
		return nil
	}
	fmt.Fprintln(c.out)
	return table(c.out, rows)
}
