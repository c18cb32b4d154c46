package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type cloneCmd struct {
	*app
	travel
	local string
	lazy  bool
}

func newClone(a *app) *cobra.Command {
	c := &cloneCmd{app: a}
	cmd := &cobra.Command{
		Use:               "clone <remote> <namespace/dot> [<branch>]",
		Short:             "Make a dot of one at a remote, with all its branches or one; it becomes the current dot",
		Args:              argCount(2, 3),
		RunE:              c.run,
		ValidArgsFunction: a.completeRemotes,
	}
	c.travel.register(cmd)
	cmd.Flags().BoolVar(&c.lazy, "lazy", false, "usable at once: data comes when it is read; 'dm pull --complete' fetches the rest")
	cmd.Flags().StringVar(&c.local, "local-name", "", "the `DOT`'s name here (default: the same, in your own namespace)")
	return cmd
}

func (c *cloneCmd) run(cmd *cobra.Command, args []string) error {
	rem, err := c.remote(args[0])
	if err != nil {
		return err
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	req := api.CloneRequest{Remote: rem, Name: args[1], Local: c.local, Lazy: c.lazy}
	if len(args) > 2 {
		req.Branch = args[2]
	}
	err = c.travel.run(c.app, "Cloning", "received", func(p func(api.Progress), tell func(api.Travel) error) (api.TransferResult, error) {
		return server.Clone(cmd.Context(), req, p, tell)
	})
	if err != nil {
		return err
	}
	return c.setCurrentDot(c.travel.result.Dot)
}
