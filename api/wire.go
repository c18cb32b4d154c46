package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"dm/internal/errs"
)

// The content types of replies.
const (
	typeJSON   = "application/json"
	typeStream = "application/x-ndjson"
	typeBytes  = "application/octet-stream"
)

// Error is an error on the wire.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// ErrorOf returns err as it goes over the wire.
func ErrorOf(err error) *Error {
	return &Error{Kind: errs.KindOf(err).String(), Message: err.Error(), Hint: errs.HintOf(err)}
}

// Err is the inverse of ErrorOf: the same kind, message and hint.
func (e *Error) Err() error {
	return &errs.Error{Kind: errs.ParseKind(e.Kind), Msg: e.Message, Hint: e.Hint}
}

// Message is one line of a streamed reply; exactly one field is set. The last has Result or Error.
type Message struct {
	Progress *Progress       `json:"progress,omitempty"`
	Item     json.RawMessage `json:"item,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Stream writes a streamed reply. Its methods must not be called concurrently.
type Stream struct {
	w       http.ResponseWriter
	enc     *json.Encoder
	started bool
}

// NewStream returns a Stream that replies through w.
func NewStream(w http.ResponseWriter) *Stream {
	w.Header().Set(VersionHeader, Version)
	return &Stream{w: w, enc: json.NewEncoder(w)}
}

func (s *Stream) send(m Message, flush bool) error {
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", typeStream)
	}
	if err := s.enc.Encode(m); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	if !flush {
		return nil
	}
	return http.NewResponseController(s.w).Flush()
}

// Progress sends how far the operation is. Progress that cannot be sent is dropped: a client that went away cancels the
// operation through its context.
func (s *Stream) Progress(p Progress) { s.send(Message{Progress: &p}, true) } //nolint:errcheck // see above

// Item sends one item of the reply.
func (s *Stream) Item(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	return s.send(Message{Item: b}, false)
}

// Tell sends one item at once.
func (s *Stream) Tell(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	return s.send(Message{Item: b}, true)
}

// Result ends the reply with its result.
func (s *Stream) Result(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	return s.send(Message{Result: b}, false)
}

// Fail ends the reply with an error: as an HTTP status where nothing was sent yet, as the last message otherwise.
func (s *Stream) Fail(err error) error {
	if s.started {
		return s.send(Message{Error: ErrorOf(err)}, false)
	}
	s.w.Header().Set("Content-Type", typeJSON)
	s.w.WriteHeader(errs.KindOf(err).HTTPStatus())
	return json.NewEncoder(s.w).Encode(ErrorOf(err))
}

// Bytes writes a reply that is plain bytes. It is an io.Writer; end it with Close.
type Bytes struct {
	w       http.ResponseWriter
	started bool
	result  any
}

// NewBytes returns a Bytes that replies through w.
func NewBytes(w http.ResponseWriter) *Bytes {
	w.Header().Set(VersionHeader, Version)
	return &Bytes{w: w}
}

func (b *Bytes) start() {
	if !b.started {
		b.started = true
		b.w.Header().Set("Content-Type", typeBytes)
		b.w.Header().Set("Trailer", ErrorTrailer+", "+ResultTrailer)
	}
}

func (b *Bytes) Write(p []byte) (int, error) {
	b.start()
	return b.w.Write(p)
}

// Result says what the client is to know when it has all bytes. Close sends it.
func (b *Bytes) Result(v any) { b.result = v }

// Close ends the reply; err, if not nil, reaches the client.
func (b *Bytes) Close(err error) {
	if err != nil && !b.started {
		(&Stream{w: b.w}).Fail(err) //nolint:errcheck // the client is gone then
		return
	}
	b.start()
	b.w.Write(nil) //nolint:errcheck // an empty file still has a header
	trailer, v := ResultTrailer, b.result
	if err != nil {
		trailer, v = ErrorTrailer, ErrorOf(err)
	}
	if v == nil {
		return
	}
	// A JSON text of Go's encoder holds no line break, so it fits a header line.
	if text, encErr := json.Marshal(v); encErr == nil {
		b.w.Header().Set(trailer, string(text))
	}
}
