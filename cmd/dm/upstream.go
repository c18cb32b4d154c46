package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type setUpstreamCmd struct{ dotFlag }

func newSetUpstream(a *app) *cobra.Command {
	c := &setUpstreamCmd{dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "set-upstream [dot] <remote> <namespace/dot>",
		Short: "Say which dot at a remote a dot is pushed to and pulled from",
		Args:  argCount(2, 3),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	return cmd
}

func (c *setUpstreamCmd) run(cmd *cobra.Command, args []string) error {
	if len(args) == 3 {
		if err := c.named(cmd, args[0]); err != nil {
			return err
		}
		args = args[1:]
	}
	if _, err := c.remote(args[0]); err != nil {
		return err
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	return server.SetUpstream(cmd.Context(), api.UpstreamRequest{Dot: dot, Remote: args[0], Name: args[1]})
}
