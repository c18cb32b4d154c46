package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

type listCmd struct {
	*app
	listing
}

func newList(a *app) *cobra.Command {
	c := &listCmd{app: a}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List all dots with their branch, containers, size, commits and uncommitted bytes",
		Args:    argCount(0, 0),
		RunE:    c.run,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *listCmd) run(cmd *cobra.Command, _ []string) error {
	cfg, err := c.readConfig()
	if err != nil {
		return err
	}
	if name := currentRemote(cfg); name != localRemote {
		return c.atRemote(cmd.Context(), name)
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	list, err := server.List(cmd.Context())
	if err != nil {
		return err
	}
	home, err := c.homeDir()
	if err != nil {
		return err
	}
	switch {
	case c.json:
		return writeJSON(c.out, list)
	case c.scripting:
		return c.script(list)
	}
	return c.human(list, cfg.Servers[home].Dot, currentRemote(cfg))
}

// atRemote lists what is at a remote that was made the current one.
func (c *listCmd) atRemote(ctx context.Context, name string) error {
	rem, err := c.remote(name)
	if err != nil {
		return err
	}
	if !c.json && !c.scripting {
		fmt.Fprintln(c.out, remoteLine(name))
	}
	return c.listRemote(ctx, rem, &c.listing)
}

func remoteLine(name string) string {
	return fmt.Sprintf("Current remote: %s (use 'dm remote -v' to list and 'dm remote switch' to switch)\n", name)
}

func (c *listCmd) script(list api.ListResult) error {
	for _, d := range list.Dots {
		containers := strings.Join(d.Containers, ",")
		if err := scriptLine(c.out, d.Name, d.Branch, d.Server, containers, d.Size, d.Commits, d.Dirty); err != nil {
			return err
		}
	}
	return nil
}

func (c *listCmd) human(list api.ListResult, current, remote string) error {
	fmt.Fprintln(c.out, remoteLine(remote))
	rows := [][]string{{"  DOT", "BRANCH", "SERVER", "CONTAINERS", "SIZE", "COMMITS", "DIRTY"}}
	for _, d := range list.Dots {
		mark := "  "
		if d.Name == current || current == "" && len(list.Dots) == 1 {
			mark = "* "
		}
		rows = append(rows, []string{
			mark + d.Name, d.Branch, d.Server, strings.Join(d.Containers, ","), size(d.Size), strconv.Itoa(d.Commits), size(d.Dirty),
		})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	sayNote(c.err, list.Note)
	for _, d := range list.Dots {
		if d.Error != "" {
			fmt.Fprintf(c.err, "dm: dot %s: %s\n", d.Name, oneLine(d.Error))
		}
	}
	return nil
}

// sayNote tells why containers are not known.
func sayNote(w io.Writer, note string) {
	if note != "" {
		fmt.Fprintf(w, "dm: containers are not known: %s\n", oneLine(note))
	}
}
