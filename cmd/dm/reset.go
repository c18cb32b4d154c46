package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type resetCmd struct {
	dotFlag
	hard      bool
	noRestart bool
}

func newReset(a *app) *cobra.Command {
	c := &resetCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "reset [--hard] [revision]",
		Short: "Take the current branch and its working copy back to a commit (default HEAD)",
		Args:  argCount(0, 1),
		RunE:  c.run,
	}
	c.register(cmd)
	cmd.Flags().BoolVar(&c.hard, "hard", false, "also when there are uncommitted changes: they are dropped")
	registerNoRestart(cmd, &c.noRestart)
	return cmd
}

func (c *resetCmd) run(cmd *cobra.Command, args []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	revision := "HEAD"
	if len(args) > 0 {
		revision = args[0]
	}
	r, err := server.Reset(cmd.Context(), api.ResetRequest{Dot: dot, Revision: revision, Hard: c.hard, NoRestart: c.noRestart})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "HEAD is now at %.12s\n", r.Head)
	if r.Dropped > 0 {
		fmt.Fprintf(c.err, "Dropped %s of uncommitted changes\n", size(r.Dropped))
	}
	sayRestarted(c.err, r.Restarted)
	sayUsers(c.err, "These go on with what was there before: start them again", r.Users)
	return nil
}
