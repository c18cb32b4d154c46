package place

import (
	"context"
	"testing"

	"dm/internal/errs"
)

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		in    string
		kind  Kind
		needs bool
		user  string
	}{
		{"/srv/dm", Directory, false, ""},
		{"./x@y", Directory, false, ""},
		{"file:///srv/dm", Directory, false, ""},
		{"s3://key@bucket/p", S3, true, ""},
		{"s3://bucket", S3, false, ""},
		{"alice@hub.example", Hub, true, "alice"},
		{"alice@hub.example:99", Hub, true, "alice"},
		{"http://bob@127.0.0.1:1", Hub, true, "bob"},
		{"https://hub.example", Hub, false, ""},
	} {
		kind, err := KindOf(c.in)
		if err != nil || kind != c.kind || NeedsKey(c.in) != c.needs || User(c.in) != c.user {
			t.Errorf("%q: %v, %v, key %v, user %q", c.in, kind, err, NeedsKey(c.in), User(c.in))
		}
	}
	for _, bad := range []string{"", "hub.example", "ftp://x", "srv/dm"} {
		if _, err := KindOf(bad); errs.KindOf(err) != errs.Usage {
			t.Errorf("KindOf(%q): %v", bad, err)
		}
	}
}

func TestOpen(t *testing.T) {
	for _, a := range []string{t.TempDir(), "file://" + t.TempDir()} {
		r, err := Open(Address{URL: a})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Check(context.Background()); err != nil {
			t.Error(err)
		}
		r.Close()
	}
	if _, err := Open(Address{URL: "/no/such/directory"}); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a directory that is not there: %v", err)
	}
	for _, bad := range []string{"alice:secret@hub", "s3://k:s@b", "a@h?x"} {
		if _, err := Open(Address{URL: bad}); errs.KindOf(err) != errs.Usage {
			t.Errorf("Open(%q): %v", bad, err)
		}
	}
}
