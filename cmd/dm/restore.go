package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type restoreCmd struct {
	dotFlag
	noRestart bool
}

func newRestore(a *app) *cobra.Command {
	c := &restoreCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "restore <revision> -- <subdot>[/path]...",
		Short: "Bring a subdot or path of a commit back, and leave the rest",
		Args:  argCount(2, -1),
		RunE:  c.run,
	}
	c.register(cmd)
	registerNoRestart(cmd, &c.noRestart)
	return cmd
}

func (c *restoreCmd) run(cmd *cobra.Command, args []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	req := api.RestoreRequest{Dot: dot, Revision: args[0], NoRestart: c.noRestart}
	for _, p := range args[1:] {
		req.Paths = append(req.Paths, api.Path(p))
	}
	r, err := server.Restore(cmd.Context(), req)
	if err != nil {
		return err
	}
	sayRestarted(c.err, r.Restarted)
	return nil
}
