package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type pullCmd struct {
	dotFlag
	travel
	name     string
	all      bool
	stash    bool
	restart  bool
	complete bool
}

func newPull(a *app) *cobra.Command {
	c := &pullCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "pull <remote> [<dot> [<branch>]]",
		Short: "Fetch the commits of a branch from a remote, and move the branch and its working copy forward to them",
		Long: "Fetch the commits of a branch from a remote, and move the branch and its working copy forward to them.\n\n" +
			"A branch that has commits of its own has diverged and is not moved. Neither is one whose working copy has uncommitted\n" +
			"changes, or whose files processes have open.",
		Args:              argCount(1, 3),
		RunE:              c.run,
		ValidArgsFunction: a.completeRemoteThenDot,
	}
	c.dotFlag.register(cmd)
	c.travel.register(cmd)
	cmd.Flags().StringVar(&c.name, "remote-name", "", "the `NAMESPACE/DOT` to pull from (default: where it came from or went before)")
	cmd.Flags().BoolVar(&c.all, "all", false, "all branches and tags of the remote's dot")
	cmd.Flags().BoolVar(&c.complete, "complete", false, "also fetch all that a lazy clone has left at the remote")
	cmd.Flags().BoolVar(&c.restart, "restart", false, "stop the containers that use the branch, and start them again on what was pulled")
	cmd.Flags().BoolVar(&c.stash, "stash-on-divergence", false, "where the two have diverged, keep this machine's commits as another branch")
	return cmd
}

func (c *pullCmd) run(cmd *cobra.Command, args []string) error {
	server, rem, dot, branch, err := c.ends(cmd, args)
	if err != nil {
		return err
	}
	err = c.travel.run(c.app, "Pulling", "received", func(p func(api.Progress), tell func(api.Travel) error) (api.TransferResult, error) {
		return server.Pull(cmd.Context(), api.PullRequest{
			Remote: rem, Dot: dot, Branch: branch, Name: c.name, All: c.all, Stash: c.stash, Restart: c.restart, Complete: c.complete,
		}, p, tell)
	})
	sayRestarted(c.err, c.travel.result.Restarted)
	return err
}
