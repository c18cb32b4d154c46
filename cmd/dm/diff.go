package main

import (
	"bufio"
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type diffCmd struct {
	dotFlag
	listing
}

func newDiff(a *app) *cobra.Command {
	c := &diffCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "diff [revision [revision]]",
		Short: "List the paths that differ: added +, modified M, removed -, renamed R",
		Long: "List the paths that differ: added +, modified M, removed -, renamed R.\n\n" +
			"Without a revision: the working copy against HEAD; with one: the working copy against it; with two: the second\n" +
			"against the first.",
		Args: argCount(0, 2),
		RunE: c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	return cmd
}

func (c *diffCmd) run(cmd *cobra.Command, args []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	req := api.DiffRequest{Dot: dot}
	if len(args) > 0 {
		req.From = args[0]
	}
	if len(args) > 1 {
		req.To = args[1]
	}
	w := bufio.NewWriter(c.out)
	all := []api.Change{}
	err = server.Diff(cmd.Context(), req, func(ch api.Change) error {
		switch {
		case c.json:
			all = append(all, ch)
			return nil
		case c.scripting:
			return scriptLine(w, ch.Kind, string(ch.Path), ch.Bytes, string(ch.Old))
		}
		return writeChange(w, ch)
	})
	if err != nil {
		return err
	}
	if c.json {
		if err := writeJSON(w, all); err != nil {
			return err
		}
	}
	return written(w.Flush())
}

func writeChange(w *bufio.Writer, ch api.Change) error {
	line := ch.Kind + " "
	if ch.Old != "" {
		line += path(ch.Old) + " => "
	}
	line += path(ch.Path)
	if ch.Bytes > 0 {
		line += " (" + size(ch.Bytes) + ")"
	}
	_, err := fmt.Fprintln(w, line)
	return written(err)
}
