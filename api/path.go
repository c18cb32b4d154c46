package api

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Path is a path of Linux, which is bytes, not text. In JSON it is a string where it is valid UTF-8 and {"bytes": base64}
// where not, so that no file name is lost on the way.
type Path string

type rawPath struct {
	Bytes []byte `json:"bytes"`
}

// MarshalJSON implements json.Marshaler.
func (p Path) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal(rawPath{[]byte(p)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Path) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err == nil {
		*p = Path(text)
		return nil
	}
	var raw rawPath
	if err := json.Unmarshal(b, &raw); err != nil {
		return fmt.Errorf("decode path: %w", err)
	}
	*p = Path(raw.Bytes)
	return nil
}
