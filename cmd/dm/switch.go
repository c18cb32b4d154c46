package main

import (
	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type switchCmd struct{ *app }

func newSwitch(a *app) *cobra.Command {
	c := &switchCmd{a}
	return &cobra.Command{
		Use:               "switch <dot>",
		Short:             "Make a dot the current one, which other commands act on",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
}

func (c *switchCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	dot, err := server.Find(cmd.Context(), api.DotRequest{Dot: args[0]})
	if errs.KindOf(err) == errs.NotFound {
		return errs.WithHint(errs.New(errs.NotFound, "Error: %s doesn't exist", args[0]), "list the dots with 'dm list'")
	}
	if err != nil {
		return err
	}
	return c.setCurrentDot(dot.Dot)
}
