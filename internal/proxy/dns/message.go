package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// TTL is of our answers: how long a program may go on with an address that the mesh has taken from a name.
	TTL = 30

	headerLen    = 12    // RFC 1035 section 4.1.1
	plainSize    = 512   // RFC 1035 section 2.3.4: what a packet holds for those who don't say otherwise
	mostSize     = 4096  // what we put into a packet at most, whatever is asked for
	longest      = 65535 // a message over TCP
	typeSVCB     = dnsmessage.Type(64)
	typeHTTPS    = dnsmessage.Type(65)
	flagResponse = 0x80 // of the third byte
)

// query is what has to be known of a query.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	name     string // lower case, without the dot at the end
	room     int    // for the answer in a packet
	edns     bool
	known    *addresses // of a name that is known here
}

// verdict is what happens to a query.
type verdict uint8

const (
	drop    verdict = iota // it is none, or nobody can be answered
	refuse                 // answered with a code
	forward                // it is for others
	here                   // we know the name
)

// read looks at a query. What is not one is dropped, so that nobody is answered who did not ask.
func read(msg []byte) (q query, v verdict, code dnsmessage.RCode) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return q, drop, 0
	}
	q.header, q.room = h, plainSize
	if h.OpCode != 0 {
		return q, refuse, dnsmessage.RCodeNotImplemented
	}
	// Two questions in a message have no answer that all agree about (RFC 9619).
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return q, refuse, dnsmessage.RCodeFormatError
	}
	if q.question, err = p.Question(); err != nil {
		return q, refuse, dnsmessage.RCodeFormatError
	}
	if err := p.SkipAllQuestions(); err != nil {
		return q, refuse, dnsmessage.RCodeFormatError
	}
	q.name = strings.TrimSuffix(strings.ToLower(q.question.Name.String()), ".")
	if err := p.SkipAllAnswers(); err != nil {
		return q, refuse, dnsmessage.RCodeFormatError
	}
	if err := p.SkipAllAuthorities(); err != nil {
		return q, refuse, dnsmessage.RCodeFormatError
	}
	for {
		rh, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || p.SkipAdditional() != nil {
			return q, refuse, dnsmessage.RCodeFormatError
		}
		if rh.Type == dnsmessage.TypeOPT { // RFC 6891 section 6.2.3: the class is the size
			q.edns, q.room = true, min(max(int(rh.Class), plainSize), mostSize)
		}
	}
	return q, forward, 0
}

// reply is the header of our answers to q.
func (q *query) reply(code dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code}
}

// failure answers with a code; nil when that can't be written.
func (q *query) failure(code dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(nil, q.reply(code))
	if q.question.Name.Length > 0 && (b.StartQuestions() != nil || b.Question(q.question) != nil) {
		return nil
	}
	return q.finish(&b)
}

// finish ends an answer: to those who speak EDNS with our own OPT record, as each must have (RFC 6891 section 6.1.1).
func (q *query) finish(b *dnsmessage.Builder) []byte {
	if q.edns {
		var opt dnsmessage.ResourceHeader
		if opt.SetEDNS0(mostSize, dnsmessage.RCodeSuccess, false) != nil || b.StartAdditionals() != nil || b.OPTResource(opt, dnsmessage.OPTResource{}) != nil {
			return nil
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// answer answers with the addresses of the name, which is known here, in an order of chance, as many as have room. Where it has none of
// a family, that is no error: the other one is asked for, too.
func (q *query) answer(room int) []byte {
	ips := q.known.v4
	switch q.question.Type {
	case dnsmessage.TypeAAAA:
		ips = q.known.v6
	case typeSVCB, typeHTTPS:
		ips = nil // hints would lead around the mesh
	}
	ips = slices.Clone(ips)
	rand.Shuffle(len(ips), func(i, j int) { ips[i], ips[j] = ips[j], ips[i] })
	for n := len(ips); ; n-- {
		msg := q.with(ips[:n], n < len(ips))
		if msg == nil || len(msg) <= room || n == 0 {
			return msg
		}
		// Each address takes 16 or 28 bytes.
		n = min(n, (room-headerLen)/16+1)
	}
}

func (q *query) with(ips []netip.Addr, truncated bool) []byte {
	h := q.reply(dnsmessage.RCodeSuccess)
	h.Authoritative, h.Truncated = true, truncated
	b := dnsmessage.NewBuilder(nil, h)
	b.EnableCompression()
	if b.StartQuestions() != nil || b.Question(q.question) != nil || b.StartAnswers() != nil {
		return nil
	}
	rh := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: TTL}
	for _, ip := range ips {
		var err error
		if ip.Is4() {
			err = b.AResource(rh, dnsmessage.AResource{A: ip.As4()})
		} else {
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
		if err != nil {
			return nil
		}
	}
	return q.finish(&b)
}

// matches reports whether msg answers the query with id and question: anything else that comes to our port is somebody's
// attempt to be believed (RFC 5452 section 9.1).
func matches(msg []byte, id uint16, q *query) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id || h.OpCode != q.header.OpCode || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	got, err := p.Question()
	return err == nil && got.Type == q.question.Type && got.Class == q.question.Class &&
		strings.EqualFold(got.Name.String(), q.question.Name.String())
}

// fit makes an answer of others fit the room that the client has: what is too long is asked for again over TCP.
func fit(msg []byte, q *query, room int) []byte {
	if len(msg) <= room {
		return msg
	}
	h := q.reply(dnsmessage.RCodeSuccess)
	h.Truncated = true
	b := dnsmessage.NewBuilder(nil, h)
	if b.StartQuestions() != nil || b.Question(q.question) != nil {
		return nil
	}
	return q.finish(&b)
}
