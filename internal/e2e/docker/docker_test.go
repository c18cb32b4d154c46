package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dm/internal/e2e/watchdog"
)

func TestMain(m *testing.M) {
	watchdog.Run()
	os.Exit(watchdog.Tests(func(string) int { return m.Run() }))
}

// The engine itself, its images and its end, with a directory of the host in the place of a volume.
func TestEngine(t *testing.T) {
	dir, err := os.MkdirTemp("", "eng")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e, err := Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			e.Stop()
		}
	})
	err = e.MakeImage("small", Image{
		Dirs:    []Dir{{Path: "/data", Mode: 0o750, User: "nobody"}},
		Files:   []File{{Path: "/data/seed", Mode: 0o640, User: "nobody", Text: "from the image"}},
		Changes: []string{"USER nobody"},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := e.Run(append(append([]string{"run", "--rm"}, Flags()...), "small", "sh", "-c", "id -un; cat /data/seed; echo $"+Mark)...)
	if want := "nobody\nfrom the image" + dir + "/"; err != nil || out != want {
		t.Fatalf("%q, %v", out, err)
	}
	run := append(append([]string{"run", "-d", "--name", "long"}, Flags()...), "-v", filepath.Join(dir, "host")+":/host", "small", "sleep", "1000")
	if _, err := e.Run(run...); err != nil {
		t.Fatal(err)
	}
	if names, err := e.Names(); err != nil || strings.Join(names, " ") != "long" {
		t.Errorf("running: %v, %v", names, err)
	}
	if err := e.Restart(); err != nil {
		t.Fatal(err)
	}
	if names, err := e.Names(); err != nil || len(names) != 0 {
		t.Errorf("running after a restart: %v, %v", names, err)
	}
	stopped = true
	if err := e.Stop(); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir+"/") {
		t.Errorf("left mounted: %v\n%s", err, mounts)
	}
	environs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range environs {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), dir+"/") {
			t.Errorf("left running: %s: %q", p, text)
		}
	}
}
