package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type initCmd struct {
	*app
	cache string
}

func newInit(a *app) *cobra.Command {
	c := &initCmd{app: a}
	cmd := &cobra.Command{
		Use:   "init <dot> [subdot...]",
		Short: "Create a dot, with the subdots named, and make it the current one",
		Args:  argCount(1, -1),
		RunE:  c.run,
	}
	cmd.Flags().StringVar(&c.cache, "cache", "", "how the kernel caches this dot: `MODE` writeback or through (default: as the server)")
	return cmd
}

func (c *initCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	dot, err := server.Init(cmd.Context(), api.InitRequest{Dot: args[0], Subdots: args[1:], Cache: c.cache})
	if err != nil {
		return err
	}
	if err := c.setCurrentDot(dot.Dot); err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Created dot %s; 'dm path -c %s.<subdot>' prints where a service can keep its data.\n", dot.Dot, dot.Dot)
	return nil
}
