package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"dm/remote/remotetest/s3server"
)

// Two machines share a dot through an S3 bucket with no server of ours, and through a directory.
func TestSharedPlaces(t *testing.T) {
	gateway := s3server.Start(t, "versitygw")
	s3server.MakeBucket(t, gateway, "dots")
	bucket := "s3://" + s3server.AccessKey + "@dots/team?endpoint=http://" + gateway + "&region=" + s3server.Region
	for kind, address := range map[string]string{"bucket": bucket, "directory": t.TempDir()} {
		t.Run(kind, func(t *testing.T) {
			a, b := newServer(t, writeback), newServer(t, writeback)
			for _, s := range []*server{a, b} {
				cmd := s.command(t.Context(), "remote", "add", "shared", address)
				cmd.Stdin = strings.NewReader(s3server.SecretKey + "\n")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("dm remote add: %v\n%s", err, out)
				}
			}
			a.dm("init", "app", "db")
			root := a.dm("path", "app")
			fill(t, filepath.Join(root, "db", "one"), 24<<20)
			a.commit("one")
			a.dm("push", "shared")
			b.dm("clone", "shared", "app", "--lazy")
			fill(t, filepath.Join(b.dm("path", "app"), "db", "two"), 4<<20)
			b.commit("two")
			b.dm("push", "shared")
			fill(t, filepath.Join(root, "db", "mine"), 1<<20)
			a.commit("mine")
			if _, stderr, code := a.try("push", "shared"); code != 4 {
				t.Errorf("the second push of two: exit code %d, %s", code, stderr)
			}
			a.dm("pull", "shared", "--stash-on-divergence")
			sameDot(t, "pulled", a, b, "app")
			b.dm("pull", "shared", "--complete")
			if r := a.transfer("push", "shared"); r.Bytes != 0 {
				t.Errorf("nothing is there to be sent, and %d bytes were", r.Bytes)
			}
			a.fsck()
			b.fsck()
		})
	}
}
