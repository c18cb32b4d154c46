package main

import (
	"bufio"
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type exportCmd struct{ dotFlag }

func newExport(a *app) *cobra.Command {
	c := &exportCmd{dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "export <revision> [subdot]",
		Short: "Write a commit, or one subdot of it, to stdout as a tar archive",
		Args:  argCount(1, 2),
		RunE:  c.run,
	}
	c.register(cmd)
	return cmd
}

func (c *exportCmd) run(cmd *cobra.Command, args []string) error {
	if terminalOf(c.out) >= 0 {
		return usage(cmd, "a tar archive is not for a terminal: redirect it to a file or a pipe")
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	req := api.ExportRequest{Dot: dot, Revision: args[0]}
	if len(args) == 2 {
		req.Subdot = args[1]
	}
	w := bufio.NewWriterSize(c.out, 1<<20)
	r, err := server.Export(cmd.Context(), req, w)
	if err != nil {
		return err
	}
	if err := written(w.Flush()); err != nil {
		return err
	}
	switch {
	case r.Sockets == 1:
		fmt.Fprintln(c.err, "Left out 1 socket: a tar archive cannot hold any, and its program makes it anew")
	case r.Sockets > 1:
		fmt.Fprintf(c.err, "Left out %d sockets: a tar archive cannot hold any, and their programs make them anew\n", r.Sockets)
	}
	return nil
}
