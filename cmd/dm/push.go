package main

import (
	"github.com/spf13/cobra"

	"dm/api"
)

type pushCmd struct {
	dotFlag
	travel
	name  string
	all   bool
	force bool
	stash bool
}

func newPush(a *app) *cobra.Command {
	c := &pushCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:               "push <remote> [<dot> [<branch>]]",
		Short:             "Send the commits of a branch to a remote; only what is missing there travels",
		Args:              argCount(1, 3),
		RunE:              c.run,
		ValidArgsFunction: a.completeRemoteThenDot,
	}
	c.dotFlag.register(cmd)
	c.travel.register(cmd)
	cmd.Flags().StringVar(&c.name, "remote-name", "", "the `NAMESPACE/DOT` to push to (default: where it went before, or the dot's name in your namespace)")
	cmd.Flags().BoolVar(&c.all, "all", false, "all branches and all tags")
	cmd.Flags().BoolVar(&c.force, "force", false, "move the remote's branch also where that gives up commits there, if this machine has seen them")
	cmd.Flags().BoolVar(&c.stash, "stash-on-divergence", false, "where the two have diverged, keep the remote's commits there as another branch")
	oneOf(cmd, "force", "stash-on-divergence")
	return cmd
}

func (c *pushCmd) run(cmd *cobra.Command, args []string) error {
	server, rem, dot, branch, err := c.ends(cmd, args)
	if err != nil {
		return err
	}
	return c.travel.run(c.app, "Pushing", "sent", func(p func(api.Progress), tell func(api.Travel) error) (api.TransferResult, error) {
		return server.Push(cmd.Context(), api.PushRequest{
			Remote: rem, Dot: dot, Branch: branch, Name: c.name, All: c.all, Force: c.force, Stash: c.stash,
		}, p, tell)
	})
}

// ends reads the <remote> [<dot> [<branch>]] of a push or pull; the dot may be in --dot instead.
func (d *dotFlag) ends(cmd *cobra.Command, args []string) (server *api.Client, rem api.Remote, dot, branch string, err error) {
	if rem, err = d.remote(args[0]); err != nil {
		return nil, rem, "", "", err
	}
	if len(args) > 1 {
		if err := d.named(cmd, args[1]); err != nil {
			return nil, rem, "", "", err
		}
	}
	if len(args) > 2 {
		branch = args[2]
	}
	server, dot, err = d.target(cmd.Context())
	return server, rem, dot, branch, err
}

// completeRemoteThenDot offers remotes as the first argument and dots as the second.
func (a *app) completeRemoteThenDot(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeRemotes(cmd, args, begun)
	case 1:
		return a.completeDots(cmd, args, begun)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
