package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

// listing is the -H and --json of verbs that list something.
type listing struct {
	scripting bool
	json      bool
}

func (l *listing) register(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&l.scripting, "scripting", "H", false, "for scripts: fields separated by tabs, sizes in bytes, no header")
	cmd.Flags().BoolVar(&l.json, "json", false, "as JSON")
	oneOf(cmd, "scripting", "json")
}

// writeJSON writes v as indented JSON.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return written(enc.Encode(v))
}

// written explains an error of writing our output.
func written(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(errs.KindOf(err), "write output: %w", err)
}

// scriptLine writes fields separated by tabs. A field that holds a tab or a line break is quoted, so that a line is
// always one record.
func scriptLine(w io.Writer, fields ...any) error {
	texts := make([]string, len(fields))
	for i, f := range fields {
		texts[i] = fmt.Sprint(f)
		if strings.ContainsAny(texts[i], "\t\n\r") {
			texts[i] = strconv.Quote(texts[i])
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(texts, "\t"))
	return written(err)
}

// table writes rows as columns that are two spaces apart.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	return written(tw.Flush())
}

// size formats bytes for people.
func size(n int64) string {
	switch v := float64(n); {
	case n == 0:
		return "-"
	case n < 1<<20:
		return fmt.Sprintf("%.2f kiB", v/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.2f MiB", v/(1<<20))
	default:
		return fmt.Sprintf("%.2f GiB", v/(1<<30))
	}
}

// path formats a path for people: quoted where a terminal or a reader would be misled by its bytes.
func path(p api.Path) string {
	s := string(p)
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == unicode.ReplacementChar }) {
		return strconv.Quote(s)
	}
	return s
}
