package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// record is what a part measured: samples by name, and the tables made of their medians.
type record struct {
	Part     string
	Title    string
	When     time.Time
	Minutes  float64
	Machine  []string
	Load     [2]string // before and after
	Samples  map[string][]float64
	Tables   []table
	Notes    []string
	Pictures []string // SVG files beside performance.md
	Commands []string

	lab      *lab
	pictures map[string]string
}

type table struct {
	Caption string
	Head    []string
	Rows    [][]string
}

func newRecord(name string, l *lab) *record {
	return &record{
		Part: name, When: time.Now().UTC().Truncate(time.Second), Load: [2]string{loadAverage()}, Samples: map[string][]float64{},
		Machine: machine(l), lab: l, pictures: map[string]string{},
	}
}

func (r *record) title(s string) { r.Title = s }

// add adds a sample.
func (r *record) add(key string, v float64) { r.Samples[key] = append(r.Samples[key], v) }

// usage adds a command's cost as three samples.
func (r *record) usage(key string, u usage) {
	r.add(key+"/wall", u.wall.Seconds())
	r.add(key+"/cpu", u.cpu.Seconds())
	r.add(key+"/rss", float64(u.rss))
}

func (r *record) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *record) table(caption string, head []string, rows [][]string) {
	r.Tables = append(r.Tables, table{caption, head, rows})
}

func (r *record) finish() {
	r.Load[1] = loadAverage()
	r.Minutes = math.Round(time.Since(r.When).Minutes()*10) / 10
	r.Commands = r.lab.commands
}

// med is the median of a key's samples; NaN if there are none, which the tables show as a dash.
func (r *record) med(key string) float64 { return r.quantile(key, 0.5) }

// quantile is a key's sample at a rank between 0 and 1; the middle of two for the median of an even number.
func (r *record) quantile(key string, q float64) float64 {
	s := slices.Clone(r.Samples[key])
	if len(s) == 0 {
		return math.NaN()
	}
	slices.Sort(s)
	if q == 0.5 && len(s)%2 == 0 {
		return (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return s[max(int(math.Ceil(q*float64(len(s))))-1, 0)]
}

func known(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// The formats of figures in tables. What is not known is a dash.

func show(v float64, format string, args ...any) string {
	if !known(v) {
		return "-"
	}
	return fmt.Sprintf(format, args...)
}

func seconds(v float64) string {
	if v < 0.1 {
		return show(v, "%.0f ms", v*1000)
	}
	return show(v, "%.2f s", v)
}

func millis(v float64) string { return show(v, "%.2f ms", v) }

func megabytes(v float64) string {
	switch {
	case v < 1e5:
		return show(v, "%.1f kB", v/1e3)
	case v < 1e7:
		return show(v, "%.2f MB", v/1e6)
	}
	return show(v, "%.0f MB", v/1e6)
}

func count(v float64) string {
	s := show(v, "%.0f", v)
	for i := len(s) - 3; i > 0 && s != "-"; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func ratio(v float64) string { return show(v, "%.2f", v) }

// markdown writes a table.
func (t table) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "%s\n\n| %s |\n|%s\n", t.Caption, strings.Join(t.Head, " | "), strings.Repeat("---|", len(t.Head)))
	for _, row := range t.Rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
	b.WriteString("\n")
}
