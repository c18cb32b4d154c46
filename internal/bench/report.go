package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// machine says what the figures were measured on and with.
func machine(l *lab) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	first := func(name string, args ...string) string {
		out, err := l.quiet(ctx, name, args...)
		if err != nil {
			return name + ": unknown"
		}
		return strings.TrimSpace(strings.SplitN(out, "\n", 2)[0])
	}
	cpu := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.Trim(name, " \t:\n")
				break
			}
		}
	}
	memory := "unknown memory"
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb float64
		fmt.Sscanf(string(data), "MemTotal: %f kB", &kb)
		memory = fmt.Sprintf("%.1f GiB", kb/(1<<20))
	}
	return []string{
		fmt.Sprintf("%d cores (%s), %s", runtime.NumCPU(), cpu, memory),
		"Linux " + first("uname", "-r") + ", " + first("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", l.root) + ", " + runtime.Version(),
		first(l.program, "version"), first("restic", "version"), first("borg", "--version"), first("fio", "--version"),
		first("mariadbd", "--version"), first("pg_config", "--version"), first("redis-server", "--version"), first("sysbench", "--version"),
	}
}

// publish prints the record, keeps it as JSON in the user's cache, and puts it into performance.md.
func (r *record) publish(docs string) error {
	text := r.markdown()
	fmt.Println(text)
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the cache directory: %w", err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	file := filepath.Join(cache, "dm-bench", r.Part+".json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("keep the figures: %w", err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("keep the figures: %w", err)
	}
	fmt.Println("figures:", file)
	if docs == "" {
		return nil
	}
	for name, svg := range r.pictures {
		if err := os.WriteFile(filepath.Join(docs, name), []byte(svg), 0o644); err != nil {
			return fmt.Errorf("write a picture: %w", err)
		}
	}
	return insert(filepath.Join(docs, "performance.md"), r.Part, text)
}

func (r *record) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", r.Title)
	fmt.Fprintf(&b, "%s, %.1f minutes; load average %s before, %s after. %s.\n\n", r.When.Format("2006-01-02 15:04 UTC"), r.Minutes, r.Load[0],
		r.Load[1], strings.Join(r.Machine, "; "))
	for _, t := range r.Tables {
		t.markdown(&b)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s\n\n", n)
	}
	for _, p := range r.Pictures {
		fmt.Fprintf(&b, "![%s](%s)\n\n", strings.TrimSuffix(p, ".svg"), p)
	}
	b.WriteString("<details><summary>Commands</summary>\n\n```\n")
	for _, c := range r.Commands {
		b.WriteString(c + "\n")
	}
	b.WriteString("```\n\n</details>\n")
	return b.String()
}

// insert replaces what is between a part's markers in a document.
func insert(file, part, text string) error {
	begin, end := "<!-- bench:"+part+" -->\n", "<!-- /bench:"+part+" -->\n"
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q to write between", file, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644)
}
