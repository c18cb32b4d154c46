package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type commitCmd struct {
	dotFlag
	message string
	meta    []string
	verbose bool
	json    bool
	noHooks bool
}

func newCommit(a *app) *cobra.Command {
	c := &commitCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "commit -m <message> [-d key=value]...",
		Short: "Commit every subdot at one instant, and print the commit's id",
		Long: "Commit every subdot at one instant, and print the commit's id.\n\n" +
			"Services go on meanwhile. Where nothing has changed a commit is made all the same, with the content of the one\n" +
			"before it: 'dm status' says whether anything has.",
		Args: argCount(0, 0),
		RunE: c.run,
	}
	c.register(cmd)
	cmd.Flags().StringVarP(&c.message, "message", "m", "", "what the commit is")
	cmd.Flags().StringArrayVarP(&c.meta, "metadata", "d", nil, "a `KEY=VALUE` to keep with the commit; may be repeated")
	cmd.Flags().BoolVarP(&c.verbose, "verbose", "v", false, "say on stderr what the commit cost")
	cmd.Flags().BoolVar(&c.json, "json", false, "print what was committed and what it cost as JSON, instead of the id")
	cmd.Flags().BoolVar(&c.noHooks, "no-hooks", false, "do not run the dm.pre-commit and dm.post-commit hooks of containers")
	return cmd
}

func (c *commitCmd) run(cmd *cobra.Command, _ []string) error {
	if !cmd.Flags().Changed("message") {
		return usage(cmd, "a commit needs a message: use -m <message>")
	}
	meta, err := parseMeta(c.meta)
	if err != nil {
		return err
	}
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	p := newProgress(c.err)
	r, err := server.Commit(cmd.Context(), api.CommitRequest{
		Dot: dot, Message: c.message, Author: author(), Meta: meta, NoHooks: c.noHooks,
	}, p.show)
	p.end()
	if err != nil {
		return err
	}
	if c.verbose {
		fmt.Fprintf(c.err, "%s dirty, %s stored in %d objects, %.0f ms, writers waited %.2f ms\n",
			size(r.Dirty), size(r.Stored), r.Objects, r.Duration, r.Pause)
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	_, err = fmt.Fprintln(c.out, r.ID)
	return written(err)
}

// parseMeta reads the key=value pairs of -d.
func parseMeta(fields []string) (map[string]string, error) {
	if len(fields) == 0 {
		return nil, nil
	}
	meta := make(map[string]string, len(fields))
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok || key == "" {
			return nil, errs.New(errs.Usage, "Each metadata value must be a name=value pair: %s", f)
		}
		if first, _ := utf8.DecodeRuneInString(key); !unicode.IsLower(first) {
			return nil, errs.New(errs.Usage, "Metadata field names must start with lowercase characters: %s", key)
		}
		meta[key] = value
	}
	return meta, nil
}
