package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type branchCmd struct {
	dotFlag
	listing
	remove string
}

func newBranch(a *app) *cobra.Command {
	c := &branchCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "branch",
		Short: "List branches, or delete one; 'dm checkout -b' creates one",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	cmd.Flags().StringVarP(&c.remove, "delete", "d", "", "delete the branch `NAME` with its uncommitted changes")
	oneOf(cmd, "delete", "scripting")
	oneOf(cmd, "delete", "json")
	return cmd
}

func (c *branchCmd) run(cmd *cobra.Command, _ []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	if cmd.Flags().Changed("delete") {
		return server.DeleteBranch(cmd.Context(), api.BranchRequest{Dot: dot, Branch: c.remove})
	}
	r, err := server.Branches(cmd.Context(), api.DotRequest{Dot: dot})
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	for _, b := range r.Branches {
		if c.scripting {
			err = scriptLine(c.out, b.Name, b.Head, b.Name == r.Current)
		} else {
			mark := "  "
			if b.Name == r.Current {
				mark = "* "
			}
			_, err = fmt.Fprintln(c.out, mark+b.Name)
		}
		if err != nil {
			return written(err)
		}
	}
	return nil
}
