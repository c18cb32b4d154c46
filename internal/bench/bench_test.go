package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestQuantiles(t *testing.T) {
	r := &record{Samples: map[string][]float64{}}
	for _, v := range []float64{5, 1, 4, 2, 3} {
		r.add("odd", v)
	}
	for _, v := range []float64{4, 1, 3, 2} {
		r.add("even", v)
	}
	for i := range 100 {
		r.add("hundred", float64(i+1))
	}
	for _, c := range []struct {
		key  string
		q    float64
		want float64
	}{
		{"odd", 0, 1},
		{"odd", 0.5, 3},
		{"odd", 1, 5},
		{"even", 0.5, 2.5},
		{"hundred", 0.99, 99},
		{"hundred", 1, 100},
	} {
		if got := r.quantile(c.key, c.q); got != c.want {
			t.Errorf("quantile %v of %s is %v, not %v", c.q, c.key, got, c.want)
		}
	}
	if v := r.med("nothing"); !math.IsNaN(v) || seconds(v) != "-" || count(v) != "-" {
		t.Errorf("the median of nothing is %v, shown as %s", v, seconds(v))
	}
	if got := count(1234567); got != "1,234,567" {
		t.Errorf("1234567 is shown as %s", got)
	}
}

// What is compared must be equal: change has to arrive at the new tree, whatever differs, and same has to tell.
func TestChange(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("0123456789abcdef", 300<<10)
	old := map[string]string{"kept": long, "grown": "abc", "cut": long, "removed": "x", "d/inner": long, "emptied": "y"}
	now := map[string]string{"kept": long, "grown": "abc" + long, "cut": long[:70000], "new/deep": long, "d/inner": long[:1<<20] + "!" + long[1<<20+1:], "emptied": ""}
	for _, tree := range []struct {
		name  string
		files map[string]string
	}{{"old", old}, {"now", now}, {"work", old}} {
		for name, content := range tree.files {
			path := filepath.Join(dir, tree.name, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx := context.Background()
	work, before, after := filepath.Join(dir, "work"), filepath.Join(dir, "old"), filepath.Join(dir, "now")
	if err := same(ctx, after, work); err == nil {
		t.Fatal("different trees are said to be the same")
	}
	c, err := change(ctx, work, before, after)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(same(ctx, after, work), same(ctx, work, after)); err != nil {
		t.Error(err)
	}
	if c.files != 5 {
		t.Errorf("%d files were changed, not 5", c.files)
	}
	if err := os.WriteFile(filepath.Join(work, "kept"), []byte(long[:len(long)-1]+"?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := same(ctx, after, work); err == nil {
		t.Error("one other byte at the end is not seen")
	}
}

func TestChartIsXML(t *testing.T) {
	c := chart{title: "a < b & c", x: "x", y: "y", series: []series{{"one", [][2]float64{{1, 2}, {1000, 20}}}, {"point", [][2]float64{{7, 7}}}}}
	d := xml.NewDecoder(strings.NewReader(c.svg()))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if s := (chart{}).svg(); strings.Contains(s, "NaN") {
		t.Error("a chart of nothing has coordinates that are no numbers")
	}
}

func TestInsert(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	text := "by hand\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nbetween\n<!-- bench:b -->\nb\n<!-- /bench:b -->\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := insert(file, "a", "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(text, "old", "new", 1); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := insert(file, "c", "new\n"); err == nil {
		t.Error("a part without markers was written somewhere")
	}
}

// The document has a place for every part.
func TestDocumentHasEveryPart(t *testing.T) {
	data, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range partNames() {
		if strings.Count(string(data), "<!-- bench:"+name+" -->\n") != 1 || strings.Count(string(data), "<!-- /bench:"+name+" -->\n") != 1 {
			t.Errorf("docs/performance.md has no place for part %s", name)
		}
	}
}

// A command's peak of memory is its own, not what the bench had before it.
func TestPeakIsTheCommandsOwn(t *testing.T) {
	const had = 256 << 20
	big := make([]byte, had)
	for i := 0; i < had; i += 4096 {
		big[i] = 1
	}
	runtime.KeepAlive(big)
	big = nil
	if p := peak(os.Getpid()); p < had {
		t.Fatalf("the test has a peak of %d bytes after using %d", p, had)
	}
	for _, c := range []struct {
		script     string
		least, max int64
	}{
		{"exit 0", 1 << 10, had / 4},
		{"head -c 134217728 /dev/zero | tail -n 1 > /dev/null", 128 << 20, 200 << 20}, // tail keeps the line
	} {
		u, _, err := measure(exec.CommandContext(t.Context(), "sh", "-c", c.script))
		if err != nil {
			t.Fatal(err)
		}
		if u.rss < c.least || u.rss > c.max {
			t.Errorf("%s: a peak of %d bytes, not between %d and %d", c.script, u.rss, c.least, c.max)
		}
	}
}
