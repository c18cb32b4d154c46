package s3_test

import (
	"testing"

	"dm/internal/errs"
	"dm/remote/s3"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want s3.Config
	}{
		{"s3://key@bucket/a/b/", s3.Config{Endpoint: "s3.amazonaws.com", Bucket: "bucket", Prefix: "a/b", AccessKey: "key"}},
		{"s3://bucket?endpoint=http://h:9000&region=eu", s3.Config{
			Endpoint: "h:9000", Insecure: true, Region: "eu", Bucket: "bucket",
		}},
	} {
		if got, err := s3.Parse(c.in); err != nil || got != c.want {
			t.Errorf("Parse(%q) = %+v, %v", c.in, got, err)
		}
	}
	for _, bad := range []string{
		"", "s3://", "s3://b:1/x", "s3://k:secret@b", "http://b", "s3://b?endpoint=h:9000", "s3://b?endpoint=http://h/x", "s3://b?x=y",
	} {
		if _, err := s3.Parse(bad); errs.KindOf(err) != errs.Usage {
			t.Errorf("Parse(%q): %v", bad, err)
		}
	}
}
