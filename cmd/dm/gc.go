package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

type gcCmd struct {
	*app
	listing
}

func newGC(a *app) *cobra.Command {
	c := &gcCmd{app: a}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free what no branch, tag or working copy reaches",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *gcCmd) run(cmd *cobra.Command, _ []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	p := newProgress(c.err)
	r, err := server.GC(cmd.Context(), p.show)
	p.end()
	if err != nil {
		return err
	}
	switch {
	case c.json:
		return writeJSON(c.out, r)
	case c.scripting:
		return scriptLine(c.out, r.Objects, r.Kept, r.Freed, r.Packs)
	}
	_, err = fmt.Fprintf(c.out, "removed %d objects and kept %d, freed %s in %d packs\n",
		r.Objects, r.Kept, amount(r.Freed, true), r.Packs)
	sayNoRoom(c.err, r.NoRoom)
	return written(err)
}

// sayNoRoom says that space could not be given back for want of space.
func sayNoRoom(w io.Writer, bytes int64) {
	if bytes > 0 {
		fmt.Fprintf(w, "dm: %s more could be freed, but the disk has no room to write what lives beside it\n", size(bytes))
	}
}
