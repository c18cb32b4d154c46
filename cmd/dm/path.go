package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type pathCmd struct {
	*app
	create bool
}

func newPath(a *app) *cobra.Command {
	c := &pathCmd{app: a}
	cmd := &cobra.Command{
		Use:   "path <dot[@branch][.subdot]>",
		Short: "Print the host path of a dot or subdot, to bind into a container",
		Long: "Print the host path of a dot or subdot, to bind into a container.\n\n" +
			"Without @branch the path stays the same over a checkout and shows the branch that is current.",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	cmd.Flags().BoolVarP(&c.create, "create", "c", false, "create the subdot if it is not there")
	return cmd
}

func (c *pathCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	r, err := server.Path(cmd.Context(), api.PathRequest{Name: args[0], Create: c.create})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, string(r.Path))
	return written(err)
}
