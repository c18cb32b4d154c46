package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"dm/internal/e2e/causal"
	"dm/internal/e2e/posix"
	"dm/internal/e2e/watchdog"
)

func TestMain(m *testing.M) {
	watchdog.Run()
	causal.RunWorker()
	posix.RunHelper()
	os.Exit(watchdog.Tests(func(dir string) int { return runTests(m, dir) }))
}

// binaryEnv names the binary under test. TestMain sets it when it has built one.
const binaryEnv = "DM_BINARY"

func runTests(m *testing.M, dir string) int {
	if os.Getenv(binaryEnv) == "" {
		if err := build(filepath.Join(dir, "dm")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := m.Run()
	if err := stopEngine(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func build(dm string) error {
	cmd := exec.Command("go", "build", "-o", dm, "dm/cmd/dm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build dm: %w\n%s", err, out)
	}
	return os.Setenv(binaryEnv, dm)
}

// number returns the number in an environment variable, or otherwise.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return n
}
