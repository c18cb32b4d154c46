// Package hubproto is what a hub and its clients say to each other, over HTTP/1.1. Client (remote/hubremote) and server
// (package hub) take paths, limits and messages from here. Described with examples in docs/format/remote.md.
//
//	GET    /v1/                               who the key belongs to: WhoAmI
//	GET    /v1/dots                           the dots that the user may read: Dots
//	DELETE /v1/dots/NS/DOT                    removes a dot
//	GET    /v1/dots/NS/DOT/refs               its branches and tags: Refs
//	POST   /v1/dots/NS/DOT/refs               moves one: Move
//	POST   /v1/dots/NS/DOT/missing            ids; answer: those that are missing
//	POST   /v1/dots/NS/DOT/packs              a pack
//	POST   /v1/dots/NS/DOT/load               LoadRequest; answer: a pack
//	GET    /v1/dots/NS/DOT/shares             who may read and write it: Shares
//	POST   /v1/dots/NS/DOT/shares             changes that for one user: Share
//
// Users show their name and key with basic authentication. Ids travel as 32 bytes each, one after the other. What fails
// is answered with a status of internal/errs and an Error.
package hubproto

import (
	"encoding/binary"

	"dm/internal/errs"
	"dm/object"
)

// Version is the version of the protocol; it is in the paths.
const Version = 1

// DefaultPort is where a hub listens.
const DefaultPort = "32607"

// Limits on bodies.
const (
	MaxJSON  = 1 << 20  // bytes of a message
	MaxIDs   = 8192     // ids in a request
	MaxPack  = 32 << 20 // bytes of a pack
	MaxPlain = 1 << 30  // bytes of a pack's objects, unpacked
	MaxChain = 64       // deltas of deltas within a pack
	MaxExtra = 32 << 20 // bytes of records that the answer to a LoadRequest has beyond what was asked for
)

// Root is the path of WhoAmI, to which all others are relative.
const Root = "/v1/"

// ContentIDs and ContentPack are the types of bodies that are not JSON.
const (
	ContentIDs  = "application/vnd.dm.ids"
	ContentPack = "application/vnd.dm.pack"
)

// WhoAmI says who the hub takes the asker for.
type WhoAmI struct {
	User    string `json:"user"`
	Version string `json:"version"`
}

// Dot is a dot in a listing.
type Dot struct {
	Name     string `json:"name"` // NAMESPACE/DOT
	ReadOnly bool   `json:"read_only,omitempty"`
	Public   bool   `json:"public,omitempty"`
}

// Dots is a listing.
type Dots struct {
	Dots []Dot `json:"dots"`
}

// Refs is all refs of a dot with their commits in hex.
type Refs struct {
	Refs map[string]string `json:"refs"`
}

// Move moves a ref; empty ids stand for none.
type Move struct {
	Ref string `json:"ref"`
	Old string `json:"old"`
	New string `json:"new"`
}

// Access is what a user may do with a dot.
type Access string

// What users may do.
const (
	None  Access = "none"
	Read  Access = "read"
	Write Access = "write" // and read
)

// Everyone stands for all users in a Share, those without a key included. They may read or not.
const Everyone = "*"

// Share gives a user access to a dot.
type Share struct {
	User   string `json:"user"`
	Access Access `json:"access"`
}

// Shares is who has access beside the owner.
type Shares struct {
	Shares []Share `json:"shares"`
}

// Error is an answer that says no.
type Error struct {
	Kind    string `json:"kind"` // of internal/errs
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Want is an object that is asked for.
type Want struct {
	Kind object.Kind
	ID   object.ID
}

// LoadRequest asks for objects. Haves are commits that the asker has.
type LoadRequest struct {
	Wants []Want
	Haves []object.ID
}

// Encode writes the number of wants and of haves, 4 bytes each, little-endian, then per want its kind and id, then the haves.
func (r *LoadRequest) Encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(r.Wants)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Haves)))
	for _, w := range r.Wants {
		b = append(append(b, byte(w.Kind)), w.ID[:]...)
	}
	return append(b, EncodeIDs(r.Haves)...)
}

// MaxLoad is the longest encoded LoadRequest in bytes.
const MaxLoad = 8 + MaxIDs*(1+2*object.IDSize)

// DecodeLoad reads what Encode wrote and refuses everything else.
func DecodeLoad(b []byte) (*LoadRequest, error) {
	if len(b) < 8 {
		return nil, errs.New(errs.Usage, "load request is cut short")
	}
	wants, haves := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
	b = b[8:]
	if wants > MaxIDs || haves > MaxIDs || int64(len(b)) != wants*(1+object.IDSize)+haves*object.IDSize {
		return nil, errs.New(errs.Usage, "load request for %d objects on top of %d has %d bytes", wants, haves, len(b))
	}
	r := &LoadRequest{}
	for range wants {
		w := Want{Kind: object.Kind(b[0])}
		if !w.Kind.Valid() {
			return nil, errs.New(errs.Usage, "load request for an object of unknown kind %d", b[0])
		}
		b = b[1+copy(w.ID[:], b[1:]):]
		r.Wants = append(r.Wants, w)
	}
	var err error
	r.Haves, err = DecodeIDs(b)
	return r, err
}

// EncodeIDs writes ids one after the other.
func EncodeIDs(ids []object.ID) []byte {
	b := make([]byte, 0, len(ids)*object.IDSize)
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

// DecodeIDs reads what EncodeIDs wrote.
func DecodeIDs(b []byte) ([]object.ID, error) {
	if len(b)%object.IDSize != 0 || len(b) > MaxIDs*object.IDSize {
		return nil, errs.New(errs.Usage, "%d bytes are no list of at most %d ids", len(b), MaxIDs)
	}
	ids := make([]object.ID, len(b)/object.IDSize)
	for i := range ids {
		b = b[copy(ids[i][:], b):]
	}
	return ids, nil
}

// EncodeID writes an id for a message; a zero one is empty.
func EncodeID(id object.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// DecodeID is the inverse of EncodeID.
func DecodeID(s string) (object.ID, error) {
	if s == "" {
		return object.ID{}, nil
	}
	return object.ParseID(s)
}
