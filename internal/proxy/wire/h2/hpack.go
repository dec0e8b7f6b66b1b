package h2

import (
	"errors"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// The decoding half of HPACK (RFC 7541), written into the arena of a stream: a block allocates nothing once the table
// exists. What depends on a name or a value alone (kindOf, message.IsValue) is found out once for each entry of a table.

// nameKind says what a field name means to the codec.
type nameKind uint8

const (
	ordinaryName  nameKind = iota
	badName                // not a lower-case token
	pseudoName             // of one that is not known
	methodName             // :method
	schemeName             // :scheme
	authorityKind          // :authority
	pathKind               // :path
	protocolKind           // :protocol
	statusKind             // :status
	hopName                // belongs to a connection of HTTP/1
	teName
	settingsName // http2-settings
	lengthName   // content-length
	hostName
	cookieName
	expectKind
)

func kindOf(name []byte) nameKind {
	switch string(name) {
	case ":method":
		return methodName
	case ":scheme":
		return schemeName
	case ":authority":
		return authorityKind
	case ":path":
		return pathKind
	case ":protocol":
		return protocolKind
	case ":status":
		return statusKind
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return hopName
	case "te":
		return teName
	case "http2-settings":
		return settingsName
	case "content-length":
		return lengthName
	case "host":
		return hostName
	case "cookie":
		return cookieName
	case "expect":
		return expectKind
	}
	switch {
	case len(name) > 0 && name[0] == ':':
		return pseudoName
	case !message.IsLowerToken(name):
		return badName
	}
	return ordinaryName
}

// decoded is one field of a block. Its value is the stream's own, which may change it; nobody may change a name, as that of the
// static table is everybody's.
type decoded struct {
	name, value []byte
	kind        nameKind
	plain       bool // value passed message.IsValue
}

// Errors of header blocks.
var (
	errTruncated = errors.New("header block ends inside a field")
	errIndex     = errors.New("index of no entry")
	errInteger   = errors.New("integer is too large")
	errHuffman   = errors.New("invalid Huffman code")
	errUpdate    = errors.New("dynamic table size update is too large or not at the start")
)

// decTable is the dynamic table of a decoder.
//
// The bytes of its entries stand in a ring of twice the largest table, each entry in one piece. That is enough: what is
// live is at most half, so neither the entry that wraps to the start nor one that follows it reaches a live one.
type decTable struct {
	most     int // that our SETTINGS allow
	limit    int // that the peer chose
	size     int // RFC 7541 section 4.1
	entries  []decEntry
	first, n int // ring: the oldest entry, and how many there are
	buf      []byte
	end      int     // in buf, of the newest entry
	field    decoded // the one that walk is at
}

type decEntry struct {
	off, name, value uint16
	kind             nameKind
	plain            bool
}

// maxDecTable keeps offsets within 16 bits.
const maxDecTable = 1 << 15

func newDecTable(size uint32) decTable {
	n := int(min(size, maxDecTable))
	return decTable{most: n, limit: n}
}

func (t *decTable) evict(limit int) {
	for t.size > limit {
		old := &t.entries[t.first]
		t.size -= int(old.name) + int(old.value) + 32
		if t.first++; t.first == len(t.entries) {
			t.first = 0
		}
		t.n--
	}
}

// add inserts an entry (section 4.4). f points elsewhere than into the table.
func (t *decTable) add(f *decoded) {
	n := len(f.name) + len(f.value)
	if n+32 > t.limit {
		t.evict(0)
		return
	}
	t.evict(t.limit - n - 32)
	if t.entries == nil {
		t.entries = make([]decEntry, t.most/32)
		t.buf = make([]byte, 2*t.most)
	}
	if t.end+n > len(t.buf) {
		t.end = 0
	}
	off := t.end
	copy(t.buf[off:], f.name)
	copy(t.buf[off+len(f.name):], f.value)
	t.end += n
	i := t.first + t.n
	if i >= len(t.entries) {
		i -= len(t.entries)
	}
	t.entries[i] = decEntry{off: uint16(off), name: uint16(len(f.name)), value: uint16(len(f.value)), kind: f.kind, plain: f.plain}
	t.n++
	t.size += n + 32
}

// at returns the entry with an index of the whole address space (section 2.3.3). It points into the tables.
func (t *decTable) at(i int, f *decoded) bool {
	if i <= staticEntries {
		if i == 0 {
			return false
		}
		*f = staticTable[i-1]
		return true
	}
	i -= staticEntries + 1 // 0 is the newest
	if i >= t.n {
		return false
	}
	i = t.first + t.n - 1 - i
	if i >= len(t.entries) {
		i -= len(t.entries)
	}
	e := &t.entries[i]
	b := t.buf[e.off:]
	f.name, f.value = b[:e.name:e.name], b[e.name:e.name+e.value:e.name+e.value]
	f.kind, f.plain = e.kind, e.plain
	return true
}

// walk decodes a block, field by field, and calls emit for each. Strings are written to a; once emit returns false they are
// decoded for the table's sake only.
func (t *decTable) walk(block []byte, a *Arena, emit func(*decoded) bool) error {
	f := &t.field
	start, wanted := true, true
	for len(block) > 0 {
		c := block[0]
		var i int
		var err error
		mark := len(a.buf)
		switch {
		case c&0x80 != 0: // indexed (section 6.1)
			if i, block, err = readInt(block, 7); err != nil {
				return err
			}
			if !t.at(i, f) {
				return errIndex
			}
			if wanted {
				if i > staticEntries {
					f.name = a.keep(f.name)
				}
				f.value = a.keep(f.value)
			}
		case c&0xe0 == 0x20: // table size update (section 6.3)
			if i, block, err = readInt(block, 5); err != nil {
				return err
			}
			if i > t.most || !start {
				return errUpdate
			}
			t.limit = i
			t.evict(i)
			continue
		default: // literal (section 6.2)
			prefix := uint(4)
			if c&0x40 != 0 {
				prefix = 6
			}
			if i, block, err = readInt(block, prefix); err != nil {
				return err
			}
			if i > 0 {
				if !t.at(i, f) {
					return errIndex
				}
				if i > staticEntries {
					f.name = a.keep(f.name) // the entry may make room for this one
				}
			} else {
				if f.name, block, err = readString(block, a); err != nil {
					return err
				}
				f.kind = kindOf(f.name)
			}
			if f.value, block, err = readString(block, a); err != nil {
				return err
			}
			f.plain = message.IsValue(f.value)
			if prefix == 6 {
				t.add(f)
			}
		}
		start = false
		wanted = wanted && emit(f)
		if !wanted {
			a.rewind(mark)
		}
	}
	return nil
}

// readInt reads an integer with an n-bit prefix (section 5.1).
func readInt(b []byte, n uint) (int, []byte, error) {
	limit := 1<<n - 1
	v := int(b[0]) & limit
	b = b[1:]
	if v < limit {
		return v, b, nil
	}
	for shift := 0; len(b) > 0; shift += 7 {
		c := b[0]
		b = b[1:]
		if shift >= 28 && c != 0 && c != 0x80 || shift > 56 {
			return 0, nil, errInteger
		}
		v += int(c&0x7f) << min(shift, 28)
		if c < 0x80 {
			return v, b, nil
		}
	}
	return 0, nil, errTruncated
}

// readString reads a string (section 5.2) into the arena.
func readString(b []byte, a *Arena) (s, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, errTruncated
	}
	huffmanCoded := b[0]&0x80 != 0
	n, b, err := readInt(b, 7)
	if err != nil {
		return nil, nil, err
	}
	if n > len(b) {
		return nil, nil, errTruncated
	}
	if !huffmanCoded {
		return a.keep(b[:n]), b[n:], nil
	}
	a.room(n*8/5 + 1) // the shortest code has 5 bits
	start := len(a.buf)
	if a.buf, err = huffman.decode(a.buf, b[:n]); err != nil {
		return nil, nil, err
	}
	return a.buf[start:len(a.buf):len(a.buf)], b[n:], nil
}

// huffmanCode is the code of RFC 7541 appendix B, made ready for decoding. It is canonical: the codes of one length are
// consecutive numbers.
type huffmanCode struct {
	short  [1 << shortBits]uint16 // by the next bits: length<<8 | symbol; 0: a longer code
	first  [31]uint32             // of the codes of a length
	count  [31]uint32
	offset [31]uint16 // in symbols
	symbol [256]byte  // by length and code
}

const shortBits = 10

var huffman = newHuffmanCode()

// newHuffmanCode learns the code from x/net's encoder.
func newHuffmanCode() *huffmanCode {
	h := &huffmanCode{}
	var codes [256]uint32
	var lengths [256]int
	for c := range 256 {
		one := string([]byte{byte(c)})
		n := int(hpack.HuffmanEncodeLength(strings.Repeat(one, 8))) // bytes for 8 codes: the bits of one
		var v uint64
		b := hpack.AppendHuffmanString(nil, one)
		for i := range 4 {
			v <<= 8
			if i < len(b) {
				v |= uint64(b[i])
			}
		}
		codes[c], lengths[c] = uint32(v>>(32-n)), n
	}
	at := 0
	for n := 1; n <= 30; n++ {
		h.offset[n] = uint16(at)
		h.first[n] = 1<<32 - 1
		for c, l := range lengths {
			if l == n {
				h.first[n] = min(h.first[n], codes[c])
				h.count[n]++
			}
		}
		for c, l := range lengths {
			if l != n {
				continue
			}
			h.symbol[at+int(codes[c]-h.first[n])] = byte(c)
			if n <= shortBits {
				for i := range 1 << (shortBits - n) {
					h.short[int(codes[c])<<(shortBits-n)|i] = uint16(n)<<8 | uint16(c)
				}
			}
		}
		at += int(h.count[n])
	}
	return h
}

// decode appends what b means to dst, which has room.
func (h *huffmanCode) decode(dst, b []byte) ([]byte, error) {
	var acc uint64 // its low bits are not decoded yet
	var have uint
	for {
		for have <= 48 && len(b) > 0 {
			acc = acc<<8 | uint64(b[0])
			b = b[1:]
			have += 8
		}
		if have == 0 {
			return dst, nil
		}
		var next uint64 // the next bits, padded with ones as encoders do
		if have >= shortBits {
			next = acc >> (have - shortBits)
		} else {
			next = acc<<(shortBits-have) | (1<<(shortBits-have) - 1)
		}
		if e := h.short[next&(1<<shortBits-1)]; e != 0 {
			n := uint(e >> 8)
			if n > have {
				return dst, h.padding(acc, have)
			}
			dst = append(dst, byte(e))
			have -= n
			continue
		}
		n := uint(shortBits + 1)
		for ; n <= 30; n++ {
			if n > have {
				return dst, h.padding(acc, have)
			}
			code := uint32(acc>>(have-n)) & (1<<n - 1)
			if i := code - h.first[n]; code >= h.first[n] && i < h.count[n] {
				dst = append(dst, h.symbol[uint32(h.offset[n])+i])
				have -= n
				break
			}
		}
		if n > 30 {
			return dst, errHuffman // the code of the end of string (section 5.2)
		}
	}
}

// padding checks what follows the last symbol: less than a byte of ones (section 5.2).
func (h *huffmanCode) padding(acc uint64, have uint) error {
	if have > 7 || acc&(1<<have-1) != 1<<have-1 {
		return errHuffman
	}
	return nil
}

var staticTable = newStaticTable()

func newStaticTable() *[staticEntries]decoded {
	t := new([staticEntries]decoded)
	for i, line := range strings.Split(staticFields, "\n") {
		name, value, _ := strings.Cut(line, "\t")
		t[i] = decoded{name: []byte(name), value: []byte(value), kind: kindOf([]byte(name)), plain: true}
	}
	return t
}

// staticFields is RFC 7541 appendix A.
const staticFields = ":authority\n" +
	":method\tGET\n" +
	":method\tPOST\n" +
	":path\t/\n" +
	":path\t/index.html\n" +
	":scheme\thttp\n" +
	":scheme\thttps\n" +
	":status\t200\n" +
	":status\t204\n" +
	":status\t206\n" +
	":status\t304\n" +
	":status\t400\n" +
	":status\t404\n" +
	":status\t500\n" +
	"accept-charset\n" +
	"accept-encoding\tgzip, deflate\n" +
	"accept-language\n" +
	"accept-ranges\n" +
	"accept\n" +
	"access-control-allow-origin\n" +
	"age\n" +
	"allow\n" +
	"authorization\n" +
	"cache-control\n" +
	"content-disposition\n" +
	"content-encoding\n" +
	"content-language\n" +
	"content-length\n" +
	"content-location\n" +
	"content-range\n" +
	"content-type\n" +
	"cookie\n" +
	"date\n" +
	"etag\n" +
	"expect\n" +
	"expires\n" +
	"from\n" +
	"host\n" +
	"if-match\n" +
	"if-modified-since\n" +
	"if-none-match\n" +
	"if-range\n" +
	"if-unmodified-since\n" +
	"last-modified\n" +
	"link\n" +
	"location\n" +
	"max-forwards\n" +
	"proxy-authenticate\n" +
	"proxy-authorization\n" +
	"range\n" +
	"referer\n" +
	"refresh\n" +
	"retry-after\n" +
	"server\n" +
	"set-cookie\n" +
	"strict-transport-security\n" +
	"transfer-encoding\n" +
	"user-agent\n" +
	"vary\n" +
	"via\n" +
	"www-authenticate\t"
