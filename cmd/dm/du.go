package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type duCmd struct {
	*app
	listing
}

func newDu(a *app) *cobra.Command {
	c := &duCmd{app: a}
	cmd := &cobra.Command{
		Use:   "du [dot]",
		Short: "Show the space that dots, or one dot's branches and commits, take",
		Long: "Show the space that dots take, or one dot with its branches and commits.\n" +
			"LOGICAL is the size of all files. STORED is what that takes in the store, compressed and each piece once. ALONE is the part\n" +
			"of it that no other dot (branch, commit) needs, so what would be freed without this one; SHARED is the rest.\n" +
			"LOCAL is what working copies take beside the store.",
		Args:              argCount(0, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *duCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	var req api.UsageRequest
	if len(args) == 1 {
		req.Dot = args[0]
	}
	r, err := server.Usage(cmd.Context(), req)
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	rows := duRows(r, len(args) == 1)
	if c.scripting {
		for _, row := range rows {
			if err := scriptLine(c.out, row.kind, row.name, row.Logical, row.Stored, row.Alone, row.Shared, row.local); err != nil {
				return err
			}
		}
		return nil
	}
	lines := [][]string{{"KIND", "NAME", "LOGICAL", "STORED", "ALONE", "SHARED", "LOCAL"}}
	for _, row := range rows {
		local := ""
		if row.kind == "dot" {
			local = size(row.local)
		}
		name := row.name
		if row.kind == "commit" {
			name = "  " + name[:12]
		}
		lines = append(lines, []string{row.kind, name, size(row.Logical), size(row.Stored), size(row.Alone), size(row.Shared), local})
	}
	return table(c.out, lines)
}

// duRow is a line: of a dot, a branch, or a commit by its id.
type duRow struct {
	kind, name string
	api.Space
	local int64
}

// duRows lists dots, and with detail what is in them. A commit of several branches has a line below each.
func duRows(r api.UsageResult, detail bool) (rows []duRow) {
	for _, d := range r.Dots {
		rows = append(rows, duRow{"dot", d.Name, d.Space, d.Local})
		if !detail {
			continue
		}
		commits := func(all []api.CommitUsage) {
			for _, ci := range all {
				rows = append(rows, duRow{kind: "commit", name: ci.ID, Space: ci.Space})
			}
		}
		for _, b := range d.Branches {
			rows = append(rows, duRow{kind: "branch", name: b.Name, Space: b.Space})
			commits(b.Commits)
		}
		if len(d.Tagged) > 0 {
			rows = append(rows, duRow{kind: "tags", name: "(no branch)"})
			commits(d.Tagged)
		}
	}
	return rows
}
