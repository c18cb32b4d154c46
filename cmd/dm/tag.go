package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type tagCmd struct {
	dotFlag
	listing
	remove bool
}

func newTag(a *app) *cobra.Command {
	c := &tagCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "tag [name [revision]]",
		Short: "List tags, name a commit, or delete a name",
		Args:  argCount(0, 2),
		RunE:  c.run,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	cmd.Flags().BoolVarP(&c.remove, "delete", "d", false, "delete the tag; its commit stays")
	return cmd
}

func (c *tagCmd) run(cmd *cobra.Command, args []string) error {
	switch {
	case c.remove && len(args) != 1:
		return usage(cmd, "-d needs the name of one tag")
	case len(args) > 0 && (c.json || c.scripting):
		return usage(cmd, "--json and --scripting are for the list of tags")
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	switch {
	case c.remove:
		return server.DeleteTag(cmd.Context(), api.TagRequest{Dot: dot, Name: args[0]})
	case len(args) == 0:
		return c.list(cmd, server, dot)
	}
	req := api.TagRequest{Dot: dot, Name: args[0]}
	if len(args) == 2 {
		req.Revision = args[1]
	}
	tag, err := server.Tag(cmd.Context(), req)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Tagged %.12s as %s\n", tag.Commit, tag.Name)
	return nil
}

func (c *tagCmd) list(cmd *cobra.Command, server *api.Client, dot string) error {
	r, err := server.Tags(cmd.Context(), api.DotRequest{Dot: dot})
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r.Tags)
	}
	for _, t := range r.Tags {
		if c.scripting {
			err = scriptLine(c.out, t.Name, t.Commit)
		} else {
			_, err = fmt.Fprintln(c.out, t.Name)
		}
		if err != nil {
			return written(err)
		}
	}
	return nil
}
