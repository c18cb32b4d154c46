package main

import (
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

type catCmd struct{ dotFlag }

func newCat(a *app) *cobra.Command {
	c := &catCmd{dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "cat <revision>:<subdot>/<path>",
		Short: "Print the bytes of a committed file",
		Args:  argCount(1, 1),
		RunE:  c.run,
	}
	c.register(cmd)
	return cmd
}

func (c *catCmd) run(cmd *cobra.Command, args []string) error {
	rev, file, ok := strings.Cut(args[0], ":")
	if !ok || rev == "" || file == "" {
		return usage(cmd, "%q is not <revision>:<subdot>/<path>", args[0])
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	return server.Cat(cmd.Context(), api.CatRequest{Dot: dot, Revision: rev, Path: api.Path(file)}, c.out)
}
