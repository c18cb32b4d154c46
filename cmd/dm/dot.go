package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

func newDot(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "dot", Short: "Show, delete or rename a dot, or set its upstream"}
	cmd.AddCommand(newDotShow(a), newDotDelete(a), newDotRename(a), newSetUpstream(a))
	return cmd
}

type dotShowCmd struct {
	dotFlag
	listing
}

func newDotShow(a *app) *cobra.Command {
	c := &dotShowCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:               "show [dot]",
		Short:             "Show everything about a dot",
		Args:              argCount(0, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	c.dotFlag.register(cmd)
	c.listing.register(cmd)
	return cmd
}

func (c *dotShowCmd) run(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		if err := c.named(cmd, args[0]); err != nil {
			return err
		}
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	r, err := server.ShowDot(cmd.Context(), api.DotRequest{Dot: dot})
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	fields := [][2]string{
		{"name", r.Name},
		{"id", r.ID},
		{"created", r.Created},
		{"server", r.Server},
		{"path", string(r.Path)},
		{"cache", r.Cache},
		{"branch", r.Branch},
		{"head", r.Head},
		{"size", c.bytes(r.Size)},
		{"dirty", c.bytes(r.Dirty)},
		{"commits", strconv.Itoa(r.Commits)},
		{"containers", strings.Join(r.Containers, ",")},
	}
	sayNote(c.err, r.Note)
	for _, s := range r.Subdots {
		fields = append(fields, [2]string{"subdot." + s.Name, c.bytes(s.Size)})
		if len(s.Containers) > 0 {
			fields = append(fields, [2]string{"containers." + s.Name, strings.Join(s.Containers, ",")})
		}
	}
	for _, b := range r.Branches {
		fields = append(fields, [2]string{"branch." + b.Name, b.Head})
	}
	for _, t := range r.Tags {
		fields = append(fields, [2]string{"tag." + t.Name, t.Commit})
	}
	if r.Lazy != "" {
		fields = append(fields, [2]string{"lazy", r.Lazy})
	}
	for _, u := range r.Upstreams {
		fields = append(fields, [2]string{"upstream." + u.Remote, u.Name})
	}
	fields = append(fields, autoFields(r.AutoCommit)...)
	rows := make([][]string, 0, len(fields))
	for _, f := range fields {
		if c.scripting {
			if err := scriptLine(c.out, f[0], f[1]); err != nil {
				return err
			}
		}
		rows = append(rows, []string{f[0] + ":", f[1]})
	}
	if c.scripting {
		return nil
	}
	return table(c.out, rows)
}

func (c *dotShowCmd) bytes(n int64) string {
	if c.scripting {
		return strconv.FormatInt(n, 10)
	}
	return size(n)
}

type dotDeleteCmd struct {
	*app
	force  bool
	remote string
}

func newDotDelete(a *app) *cobra.Command {
	c := &dotDeleteCmd{app: a}
	cmd := &cobra.Command{
		Use:   "delete [-f] <dot>",
		Short: "Delete a dot with all its branches and commits, after a prompt",
		Long: "Delete a dot with all its branches and commits, after a prompt: here, or with --remote there, and then not here.\n" +
			"Give the dot at a remote with its namespace. The space that it takes there is not given back.",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	cmd.Flags().BoolVarP(&c.force, "force", "f", false, "do not ask")
	cmd.Flags().StringVar(&c.remote, "remote", "", "delete it at this `REMOTE`, for everyone who uses it there")
	cmd.RegisterFlagCompletionFunc("remote", a.completeRemotes) //nolint:errcheck // fails only for a flag that does not exist
	return cmd
}

func (c *dotDeleteCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	if c.remote != "" {
		return c.runRemote(cmd.Context(), server, args[0])
	}
	dot, err := server.Find(cmd.Context(), api.DotRequest{Dot: args[0]})
	if err != nil {
		return err
	}
	if !c.force {
		question := fmt.Sprintf("This deletes dot %s with all its branches, commits and uncommitted changes.", dot.Dot)
		if err := c.confirm(cmd.Context(), question); err != nil {
			return err
		}
	}
	if err := server.DeleteDot(cmd.Context(), api.DotRequest(dot)); err != nil {
		return err
	}
	return c.moveCurrentDot(dot.Dot, "")
}

func (c *dotDeleteCmd) runRemote(ctx context.Context, server *api.Client, dot string) error {
	rem, err := c.app.remote(c.remote)
	if err != nil {
		return err
	}
	if !c.force {
		question := fmt.Sprintf("This deletes dot %s with all its branches and commits at remote %s.", dot, c.remote)
		if err := c.confirm(ctx, question); err != nil {
			return err
		}
	}
	return server.DeleteRemoteDot(ctx, api.RemoteDeleteRequest{Remote: rem, Dot: dot})
}

type dotRenameCmd struct{ *app }

func newDotRename(a *app) *cobra.Command {
	c := &dotRenameCmd{a}
	return &cobra.Command{
		Use:               "rename <dot> <new name>",
		Short:             "Give a dot another name",
		Args:              argCount(2, 2),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
}

func (c *dotRenameCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	old, err := server.Find(cmd.Context(), api.DotRequest{Dot: args[0]})
	if err != nil {
		return err
	}
	dot, err := server.RenameDot(cmd.Context(), api.RenameDotRequest{Dot: old.Dot, To: args[1]})
	if err != nil {
		return err
	}
	return c.moveCurrentDot(old.Dot, dot.Dot)
}

// moveCurrentDot makes name the current dot if old was.
func (a *app) moveCurrentDot(old, name string) error {
	cfg, err := a.readConfig()
	if err != nil {
		return err
	}
	home, err := a.homeDir()
	if err != nil || cfg.Servers[home].Dot != old {
		return err
	}
	return a.setCurrentDot(name)
}
