package h2

import (
	"hash/maphash"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Bounds of the encoder's memory, whatever table the peer offers.
const (
	encTable   = 4096              // dynamic table, RFC 7541 section 4.1 counting
	encEntries = encTable/32 + 1   // more entries than can be
	encLargest = 512               // a larger field is not worth its place
	encArena   = encTable + 2*1024 // what the table can hold and what wrapping wastes
	encSlots   = 256               // of the two hash tables; a power of two
)

// Encoder writes header blocks (RFC 7541). It belongs to the writing side of one connection.
//
// A field enters the dynamic table when it is met for the second time: what repeats costs one byte, and request ids,
// dates and paths with numbers never push it out. Credentials are never indexed (section 7.1.3). Strings are sent
// plain: Huffman codes cost more time on both sides than the bytes they save are worth inside a mesh.
//
// Nothing is allocated for a block once the table exists.
type Encoder struct {
	seed  maphash.Seed
	limit int // of the dynamic table, at most encTable
	// A change of limit is announced at the start of the next block: first the smallest it has been (section 4.2).
	lowest  int
	resized bool

	entries  []encEntry // ring
	first, n int        // the oldest entry, and how many there are
	size     int        // section 4.1
	seq      uint32     // of the next entry
	arena    []byte
	end      int // in arena, of the newest entry

	seen [encSlots]uint32 // hashes met lately
	at   [encSlots]uint32 // seq+1 of the entry with a hash, 0 if none
}

type encEntry struct {
	off, name, value uint16 // in arena
	slot             uint8
}

// NewEncoder returns an encoder for a peer with the default table size.
func NewEncoder() *Encoder {
	return &Encoder{seed: maphash.MakeSeed(), limit: encTable, lowest: encTable}
}

// SetTableSize follows the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *Encoder) SetTableSize(n uint32) {
	limit := int(min(n, encTable))
	if limit == e.limit {
		return
	}
	e.limit, e.resized = limit, true
	e.lowest = min(e.lowest, limit)
	e.evict(e.lowest)
}

func (e *Encoder) evict(limit int) {
	for e.size > limit {
		old := &e.entries[e.first]
		if e.at[old.slot] == e.seq-uint32(e.n)+1 {
			e.at[old.slot] = 0
		}
		e.size -= int(old.name) + int(old.value) + 32
		e.first = (e.first + 1) % len(e.entries)
		e.n--
	}
}

// begin writes what must stand at the start of a block.
func (e *Encoder) begin(b []byte) []byte {
	if !e.resized {
		return b
	}
	e.resized = false
	if e.lowest < e.limit {
		// 0 instead of the smallest: Go's decoder takes a second update only while its table is empty.
		e.evict(0)
		b = append(b, 0x20)
	}
	e.lowest = e.limit
	return appendInt(b, 0x20, 5, e.limit)
}

// Request appends the block of a request head. An Upgrade becomes an extended CONNECT (RFC 8441), which the peer must have
// allowed.
func (e *Encoder) Request(b []byte, r *message.Request) []byte {
	b = e.begin(b)
	switch {
	case len(r.Upgrade) > 0:
		b = e.literal(b, 2, "", connectMethod)
		b = e.field(b, protocolName, r.Upgrade)
	case string(r.Method) == "GET":
		b = append(b, 0x80|2)
	case string(r.Method) == "POST":
		b = append(b, 0x80|3)
	default:
		b = e.literal(b, 2, "", r.Method)
	}
	connect := string(r.Method) == "CONNECT" && len(r.Upgrade) == 0
	if !connect {
		if string(r.Scheme) == "https" {
			b = append(b, 0x80|7)
		} else {
			b = append(b, 0x80|6)
		}
		if len(r.Path) == 1 && r.Path[0] == '/' && !r.HasQuery {
			b = append(b, 0x80|4)
		} else if !r.HasQuery {
			b = e.field(b, pathName, r.Path)
		} else {
			b = append(b, 4) // literal without indexing, name 4 of the static table
			b = appendInt(b, 0, 7, len(r.Path)+1+len(r.Query))
			b = append(append(append(b, r.Path...), '?'), r.Query...)
		}
	}
	if len(r.Authority) > 0 {
		b = e.field(b, authorityName, r.Authority)
	}
	if r.Length > 0 || r.Length == 0 && wantsLength(r.Method) {
		b = e.contentLength(b, r.Length)
	}
	if r.ExpectContinue {
		b = e.field(b, expectName, continueValue)
	}
	return e.fields(b, r.Fields)
}

// wantsLength says whether a request without a body should say so (RFC 9110 section 8.6).
func wantsLength(method []byte) bool {
	switch string(method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// Names and values that are always written the same way; nobody writes to them.
var (
	connectMethod = []byte("CONNECT")
	protocolName  = []byte(":protocol")
	pathName      = []byte(":path")
	authorityName = []byte(":authority")
	expectName    = []byte("expect")
	continueValue = []byte("100-continue")
	statusName    = []byte(":status")
)

// Response appends the block of a response head. A 101 becomes the 200 that accepts an extended CONNECT (RFC 8441
// section 5).
func (e *Encoder) Response(b []byte, r *message.Response) []byte {
	b = e.begin(b)
	status := r.Status
	if status == 101 {
		status = 200
	}
	switch status {
	case 200:
		b = append(b, 0x80|8)
	case 204:
		b = append(b, 0x80|9)
	case 206:
		b = append(b, 0x80|10)
	case 304:
		b = append(b, 0x80|11)
	case 400:
		b = append(b, 0x80|12)
	case 404:
		b = append(b, 0x80|13)
	case 500:
		b = append(b, 0x80|14)
	default:
		v := [3]byte{'0' + byte(status/100%10), '0' + byte(status/10%10), '0' + byte(status%10)}
		b = e.field(b, statusName, v[:])
	}
	// A length says nothing with a 1xx, a 204 or a tunnel (RFC 9110 section 8.6).
	if r.Length >= 0 && r.Status >= 200 && r.Status != 204 && (r.HasBody || r.Length > 0) {
		b = e.contentLength(b, r.Length)
	}
	return e.fields(b, r.Fields)
}

// Trailers appends the block of a trailer section.
func (e *Encoder) Trailers(b []byte, f message.Fields) []byte { return e.fields(e.begin(b), f) }

// fields appends the fields that HTTP/2 knows; what belongs to a connection is dropped if it is there against the
// invariants of message, and Expect has been written from the flag.
func (e *Encoder) fields(b []byte, f message.Fields) []byte {
	for i := range f {
		name, value := f[i].Name, f[i].Value
		switch string(name) {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings", "host", "content-length", "expect":
			continue
		case "authorization", "proxy-authorization", "cookie", "set-cookie":
			b = append(b, 0x10) // never indexed, new name
			b = appendBytes(b, name)
			b = appendBytes(b, value)
		default:
			b = e.field(b, name, value)
		}
	}
	return b
}

func (e *Encoder) contentLength(b []byte, n int64) []byte {
	var d [20]byte
	i := len(d)
	for {
		i--
		d[i] = '0' + byte(n%10)
		if n /= 10; n == 0 {
			break
		}
	}
	return e.literal(b, 28, "", d[i:])
}

// literal appends a literal without indexing, with a name of the static table or a new one.
func (e *Encoder) literal(b []byte, static int, name string, value []byte) []byte {
	b = appendInt(b, 0, 4, static)
	if static == 0 {
		b = appendInt(b, 0, 7, len(name))
		b = append(b, name...)
	}
	return appendBytes(b, value)
}

// field appends one field by the best representation.
func (e *Encoder) field(b, name, value []byte) []byte {
	size := len(name) + len(value) + 32
	if size > encLargest || size > e.limit {
		return e.plain(b, name, value)
	}
	h := maphash.Bytes(e.seed, name)*31 ^ maphash.Bytes(e.seed, value)
	slot := uint8(h)
	if at := e.at[slot]; at != 0 {
		back := e.seq - at // 0 is the newest
		if back < uint32(e.n) {
			x := &e.entries[(e.first+e.n-1-int(back))%len(e.entries)]
			nv := e.arena[x.off : x.off+x.name+x.value]
			if int(x.name) == len(name) && string(nv[:x.name]) == string(name) && string(nv[x.name:]) == string(value) {
				return appendInt(b, 0x80, 7, staticEntries+1+int(back))
			}
		}
	}
	if mark := uint32(h >> 32); e.seen[slot] != mark {
		e.seen[slot] = mark
		return e.plain(b, name, value)
	}
	e.insert(name, value, size, slot)
	if s := staticName(name); s != 0 {
		b = appendInt(b, 0x40, 6, s)
	} else {
		b = append(b, 0x40)
		b = appendBytes(b, name)
	}
	return appendBytes(b, value)
}

func (e *Encoder) plain(b, name, value []byte) []byte {
	if s := staticName(name); s != 0 {
		b = appendInt(b, 0, 4, s)
	} else {
		b = append(b, 0)
		b = appendBytes(b, name)
	}
	return appendBytes(b, value)
}

// insert adds an entry, after room was made for it (RFC 7541 section 4.4).
func (e *Encoder) insert(name, value []byte, size int, slot uint8) {
	if e.entries == nil {
		e.entries = make([]encEntry, encEntries)
		e.arena = make([]byte, encArena)
	}
	e.evict(e.limit - size)
	n := len(name) + len(value)
	if e.end+n > len(e.arena) { // live entries are within encTable behind end, so the start of the arena is free again
		e.end = 0
	}
	off := e.end
	copy(e.arena[off:], name)
	copy(e.arena[off+len(name):], value)
	e.end += n
	e.entries[(e.first+e.n)%len(e.entries)] = encEntry{uint16(off), uint16(len(name)), uint16(len(value)), slot}
	e.n++
	e.size += size
	e.seq++
	e.at[slot] = e.seq
}

// appendInt appends an integer with an n-bit prefix (RFC 7541 section 5.1).
func appendInt(b []byte, first byte, n uint, v int) []byte {
	limit := 1<<n - 1
	if v < limit {
		return append(b, first|byte(v))
	}
	b = append(b, first|byte(limit))
	for v -= limit; v >= 128; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// appendBytes appends a string literal without Huffman coding (section 5.2).
func appendBytes(b, s []byte) []byte { return append(appendInt(b, 0, 7, len(s)), s...) }

// staticEntries is the size of the static table (RFC 7541 appendix A).
const staticEntries = 61

// staticName returns the index of a name in the static table, or 0.
func staticName(name []byte) int {
	switch string(name) {
	case ":authority":
		return 1
	case ":method":
		return 2
	case ":path":
		return 4
	case ":scheme":
		return 6
	case ":status":
		return 8
	case "accept-charset":
		return 15
	case "accept-encoding":
		return 16
	case "accept-language":
		return 17
	case "accept-ranges":
		return 18
	case "accept":
		return 19
	case "access-control-allow-origin":
		return 20
	case "age":
		return 21
	case "allow":
		return 22
	case "authorization":
		return 23
	case "cache-control":
		return 24
	case "content-disposition":
		return 25
	case "content-encoding":
		return 26
	case "content-language":
		return 27
	case "content-length":
		return 28
	case "content-location":
		return 29
	case "content-range":
		return 30
	case "content-type":
		return 31
	case "cookie":
		return 32
	case "date":
		return 33
	case "etag":
		return 34
	case "expect":
		return 35
	case "expires":
		return 36
	case "from":
		return 37
	case "host":
		return 38
	case "if-match":
		return 39
	case "if-modified-since":
		return 40
	case "if-none-match":
		return 41
	case "if-range":
		return 42
	case "if-unmodified-since":
		return 43
	case "last-modified":
		return 44
	case "link":
		return 45
	case "location":
		return 46
	case "max-forwards":
		return 47
	case "proxy-authenticate":
		return 48
	case "proxy-authorization":
		return 49
	case "range":
		return 50
	case "referer":
		return 51
	case "refresh":
		return 52
	case "retry-after":
		return 53
	case "server":
		return 54
	case "set-cookie":
		return 55
	case "strict-transport-security":
		return 56
	case "transfer-encoding":
		return 57
	case "user-agent":
		return 58
	case "vary":
		return 59
	case "via":
		return 60
	case "www-authenticate":
		return 61
	}
	return 0
}
