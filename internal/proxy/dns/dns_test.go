package dns

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
)

// sockets are for packets and connections on one port.
func sockets(t *testing.T) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	for try := 0; ; try++ {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(c.LocalAddr().(*net.UDPAddr).AddrPort()))
		if err == nil {
			return c, ln
		}
		_ = c.Close()
		if try == 50 {
			t.Fatal(err)
		}
	}
}

// resolver is a server of others: answer makes what it says, as many packets as it likes; nil: nothing.
func resolver(t *testing.T, answer func(query []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, ln := sockets(t)
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	var each sync.WaitGroup
	t.Cleanup(func() { _ = c.Close(); _ = ln.Close(); each.Wait() })
	each.Go(func() {
		buf := make([]byte, longest)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, a := range answer(slices.Clone(buf[:n])) {
				_, _ = c.WriteToUDPAddrPort(a, from)
			}
		}
	})
	each.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			msg, err := readStream(nc)
			if err == nil {
				for _, a := range answer(msg) {
					_ = writeStream(nc, a)
				}
			}
			_ = nc.Close()
		}
	})
	return at
}

// says answers every query with one address.
func says(ip string) func([]byte) [][]byte {
	return func(msg []byte) [][]byte { return [][]byte{response(msg, netip.MustParseAddr(ip))} }
}

func response(msg []byte, ips ...netip.Addr) []byte {
	q, _, _ := read(msg)
	return q.with(ips, false)
}

// serve runs a server and returns where it is asked.
func serve(t *testing.T, o Options, records ...plan.NameRecord) (*Server, string) {
	t.Helper()
	s := New(o)
	names, err := NewNames(records)
	if err != nil {
		t.Fatal(err)
	}
	s.SetNames(names)
	c, ln := sockets(t)
	addr := c.LocalAddr().String()
	run(t, s, c, ln)
	return s, addr
}

func run(t *testing.T, s *Server, c *net.UDPConn, ln *net.TCPListener) {
	var each sync.WaitGroup
	each.Go(func() { s.ServePackets(c) })
	each.Go(func() { s.ServeStreams(ln) })
	t.Cleanup(func() { s.Close(); each.Wait() })
}

func ask(id uint16, name string, typ dnsmessage.Type, size int) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET})
	if size > 0 {
		var opt dnsmessage.ResourceHeader
		_ = opt.SetEDNS0(size, dnsmessage.RCodeSuccess, false)
		_ = b.StartAdditionals()
		_ = b.OPTResource(opt, dnsmessage.OPTResource{})
	}
	msg, err := b.Finish()
	if err != nil {
		panic(err)
	}
	return msg
}

func exchange(t *testing.T, network, addr string, msg []byte) dnsmessage.Message {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	var answer []byte
	if network == "tcp" {
		if err = writeStream(c, msg); err == nil {
			answer, err = readStream(c)
		}
	} else if _, err = c.Write(msg); err == nil {
		buf := make([]byte, longest)
		var n int
		n, err = c.Read(buf)
		answer = buf[:n]
	}
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	if want := binary.BigEndian.Uint16(msg); m.ID != want || !m.Response {
		t.Fatalf("the answer has number %d, the query %d (response %v)", m.ID, want, m.Response)
	}
	return m
}

func addressesOf(m dnsmessage.Message) []string {
	found := []string{}
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			found = append(found, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			found = append(found, netip.AddrFrom16(b.AAAA).String())
		}
	}
	slices.Sort(found)
	return found
}

func TestAnswers(t *testing.T) {
	other := resolver(t, says("192.0.2.9"))
	_, addr := serve(t, Options{Resolvers: []netip.AddrPort{other}},
		plan.NameRecord{Name: "api.example.com", Addresses: []string{"240.240.0.1", "240.240.0.2", "2001:2::1"}},
		plan.NameRecord{Name: "four.example.com", Addresses: []string{"240.240.0.4"}},
		plan.NameRecord{Name: "*.wild.example", Addresses: []string{"240.240.0.5"}},
		plan.NameRecord{Name: "*.deep.wild.example", Addresses: []string{"240.240.0.6"}},
		plan.NameRecord{Name: "none.example"})
	const a, aaaa = dnsmessage.TypeA, dnsmessage.TypeAAAA
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		want []string
	}{
		{"api.example.com.", a, []string{"240.240.0.1", "240.240.0.2"}},
		{"API.eXample.com.", a, []string{"240.240.0.1", "240.240.0.2"}},
		{"api.example.com.", aaaa, []string{"2001:2::1"}},
		{"four.example.com.", aaaa, []string{}}, // no error: the other family is there
		{"four.example.com.", typeHTTPS, []string{}},
		{"a.wild.example.", a, []string{"240.240.0.5"}},
		{"a.b.wild.example.", a, []string{"240.240.0.5"}},
		{"a.deep.wild.example.", a, []string{"240.240.0.6"}},
		{"wild.example.", a, []string{"192.0.2.9"}}, // is not *.wild.example
		{"none.example.", a, []string{}},
		{"www.example.org.", a, []string{"192.0.2.9"}},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := exchange(t, network, addr, ask(4711, c.name, c.typ, 1232))
			if d := cmp.Diff(c.want, addressesOf(m)); d != "" || m.RCode != dnsmessage.RCodeSuccess {
				t.Errorf("%s %s %s: %s %s", network, c.name, c.typ, m.RCode, d)
			}
			if len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name {
				t.Errorf("%s: the question comes back as %v", c.name, m.Questions)
			}
			for _, r := range m.Answers {
				if m.Authoritative && r.Header.TTL != TTL {
					t.Errorf("%s: a TTL of %d", c.name, r.Header.TTL)
				}
			}
		}
	}
	// What we have no word about is asked of others, also for a name that we know.
	m := exchange(t, "udp", addr, ask(1, "api.example.com.", dnsmessage.TypeMX, 0))
	if d := cmp.Diff([]string{"192.0.2.9"}, addressesOf(m)); d != "" {
		t.Error(d)
	}
}

func TestOrderIsByChance(t *testing.T) {
	r := plan.NameRecord{Name: "many.example"}
	for i := range 8 {
		r.Addresses = append(r.Addresses, fmt.Sprintf("240.240.0.%d", i+1))
	}
	_, addr := serve(t, Options{Resolvers: []netip.AddrPort{}}, r)
	first := map[[4]byte]bool{}
	for range 100 {
		m := exchange(t, "udp", addr, ask(1, "many.example.", dnsmessage.TypeA, 0))
		first[m.Answers[0].Body.(*dnsmessage.AResource).A] = true
	}
	if len(first) < 4 {
		t.Errorf("100 answers began with %d of 8 addresses", len(first))
	}
}

// A packet is no longer than its client can take; the rest is for TCP.
func TestLongAnswersAreCut(t *testing.T) {
	r := plan.NameRecord{Name: "many.example"}
	for i := range 400 {
		r.Addresses = append(r.Addresses, netip.AddrFrom4([4]byte{240, 240, byte(i >> 8), byte(i)}).String())
	}
	var all []netip.Addr
	for i := range 400 {
		all = append(all, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}))
	}
	other := resolver(t, func(msg []byte) [][]byte { return [][]byte{response(msg, all...)} })
	_, addr := serve(t, Options{Resolvers: []netip.AddrPort{other}}, r)
	for _, name := range []string{"many.example.", "other.example."} {
		for _, size := range []int{0, 100, 1232, 65535} {
			room := min(max(size, plainSize), mostSize)
			c, err := net.Dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, _ = c.Write(ask(7, name, dnsmessage.TypeA, size))
			buf := make([]byte, longest)
			n, err := c.Read(buf)
			_ = c.Close()
			if err != nil || n > room || buf[2]&2 == 0 {
				t.Errorf("%s with room for %d: %d bytes, truncated %v, %v", name, room, n, buf[2]&2 != 0, err)
			}
		}
		if m := exchange(t, "tcp", addr, ask(7, name, dnsmessage.TypeA, 0)); len(m.Answers) != 400 || m.Truncated {
			t.Errorf("%s over TCP: %d answers, truncated %v", name, len(m.Answers), m.Truncated)
		}
	}
}

// TestHostileAnswers: a resolver, or somebody who guesses, says everything but the answer before the answer, or instead of it
// (CVE-2021-23017, CVE-2025-62408, and RFC 5452).
func TestHostileAnswers(t *testing.T) {
	lie := netip.MustParseAddr("203.0.113.66")
	lies := func(msg []byte) [][]byte {
		right := response(msg, lie)
		id := slices.Clone(right)
		id[0] ^= 0xff
		notResponse := slices.Clone(right)
		notResponse[2] &^= flagResponse
		otherName := response(ask(binary.BigEndian.Uint16(msg), "evil.example.", dnsmessage.TypeA, 0), lie)
		otherType := response(ask(binary.BigEndian.Uint16(msg), "www.example.org.", dnsmessage.TypeAAAA, 0), lie)
		loop := slices.Clone(right)
		loop[headerLen], loop[headerLen+1] = 0xc0, headerLen // a name that points to itself
		two := slices.Clone(right)
		two[5] = 2
		return [][]byte{nil, {0}, right[:headerLen], id, notResponse, otherName, otherType, loop, two, make([]byte, 9000)}
	}
	t.Run("before the answer", func(t *testing.T) {
		other := resolver(t, func(msg []byte) [][]byte { return append(lies(msg), response(msg, netip.MustParseAddr("192.0.2.1"))) })
		_, addr := serve(t, Options{Resolvers: []netip.AddrPort{other}})
		m := exchange(t, "udp", addr, ask(9, "www.example.org.", dnsmessage.TypeA, 0))
		if d := cmp.Diff([]string{"192.0.2.1"}, addressesOf(m)); d != "" {
			t.Error(d)
		}
	})
	t.Run("instead of it", func(t *testing.T) {
		bad := resolver(t, func(msg []byte) [][]byte {
			return append(append(append(lies(msg), lies(msg)...), lies(msg)...), lies(msg)...)
		})
		good := resolver(t, says("192.0.2.2"))
		_, addr := serve(t, Options{Resolvers: []netip.AddrPort{bad, good}})
		m := exchange(t, "udp", addr, ask(9, "www.example.org.", dnsmessage.TypeA, 0))
		if d := cmp.Diff([]string{"192.0.2.2"}, addressesOf(m)); d != "" {
			t.Error(d)
		}
	})
	t.Run("a CNAME to itself is not followed", func(t *testing.T) {
		var asked atomic.Int32
		other := resolver(t, func(msg []byte) [][]byte {
			asked.Add(1)
			b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: binary.BigEndian.Uint16(msg), Response: true})
			q, _, _ := read(msg)
			_ = b.StartQuestions()
			_ = b.Question(q.question)
			_ = b.StartAnswers()
			_ = b.CNAMEResource(dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET}, dnsmessage.CNAMEResource{CNAME: q.question.Name})
			out, _ := b.Finish()
			return [][]byte{out}
		})
		_, addr := serve(t, Options{Resolvers: []netip.AddrPort{other}})
		if m := exchange(t, "udp", addr, ask(9, "www.example.org.", dnsmessage.TypeA, 0)); len(m.Answers) != 1 || asked.Load() != 1 {
			t.Errorf("%d answers after %d queries", len(m.Answers), asked.Load())
		}
	})
}

func TestResolversThatDoNotAnswer(t *testing.T) {
	gone := netip.MustParseAddrPort("127.0.0.1:1")
	good := resolver(t, says("192.0.2.3"))
	_, addr := serve(t, Options{Resolvers: []netip.AddrPort{gone, good}})
	if d := cmp.Diff([]string{"192.0.2.3"}, addressesOf(exchange(t, "udp", addr, ask(1, "a.example.", dnsmessage.TypeA, 0)))); d != "" {
		t.Error(d)
	}
	_, addr = serve(t, Options{Resolvers: []netip.AddrPort{gone}})
	for _, network := range []string{"udp", "tcp"} {
		if m := exchange(t, network, addr, ask(1, "a.example.", dnsmessage.TypeA, 0)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("%s: %s", network, m.RCode)
		}
	}
}

// A query of our own that comes back ends there, instead of going round until all places are taken.
func TestNoLoop(t *testing.T) {
	c0, ln := sockets(t)
	addr := c0.LocalAddr().String()
	s := New(Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(addr)}})
	run(t, s, c0, ln)
	before := len(s.queries)
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write(ask(1, "a.example.", dnsmessage.TypeA, 0))
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	end := time.Now().Add(time.Minute)
	for len(s.queries) == before && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	most := 0
	for range 40 {
		most = max(most, len(s.queries)-before)
		time.Sleep(5 * time.Millisecond)
	}
	if most != 1 {
		t.Errorf("one query took %d places", most)
	}
	buf := make([]byte, 512)
	if n, err := c.Read(buf); err != nil || dnsmessage.RCode(buf[3]&15) != dnsmessage.RCodeServerFailure {
		t.Errorf("%x %v", buf[:n], err)
	}
}

// A connection of our own may be accepted before it is known as ours: what counts is when its query comes.
func TestNoLoopOverStreams(t *testing.T) {
	s, addr := serve(t, Options{Resolvers: []netip.AddrPort{}}, plan.NameRecord{Name: "web", Addresses: []string{"10.0.0.1"}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	query := ask(1, "web.", dnsmessage.TypeA, 0)
	if err := writeStream(c, query); err != nil {
		t.Fatal(err)
	}
	if _, err := readStream(c); err != nil {
		t.Fatalf("a stranger's query: %v", err)
	}
	defer s.remember("udp", c.LocalAddr())() // has ports of its own
	if err := writeStream(c, query); err != nil {
		t.Fatal(err)
	}
	if _, err := readStream(c); err != nil {
		t.Fatalf("a stranger's query from a port that is ours for packets: %v", err)
	}
	defer s.remember("tcp", c.LocalAddr())()
	_ = writeStream(c, query)
	if msg, err := readStream(c); err == nil {
		t.Errorf("our own query is answered: %x", msg)
	}
}

func TestStrangeQueries(t *testing.T) {
	_, addr := serve(t, Options{Resolvers: []netip.AddrPort{}}, plan.NameRecord{Name: "a.example", Addresses: []string{"240.240.0.1"}})
	good := ask(77, "a.example.", dnsmessage.TypeA, 0)
	change := func(f func(b []byte)) []byte { b := slices.Clone(good); f(b); return b }
	for what, c := range map[string]struct {
		msg  []byte
		code dnsmessage.RCode
	}{
		"two questions":                {change(func(b []byte) { b[5] = 2 }), dnsmessage.RCodeFormatError},
		"no question":                  {change(func(b []byte) { b[5] = 0 })[:headerLen], dnsmessage.RCodeFormatError},
		"cut off":                      {good[:len(good)-3], dnsmessage.RCodeFormatError},
		"a name that points to itself": {change(func(b []byte) { b[headerLen], b[headerLen+1] = 0xc0, headerLen }), dnsmessage.RCodeFormatError},
		"an update":                    {change(func(b []byte) { b[2] |= 5 << 3 }), dnsmessage.RCodeNotImplemented},
	} {
		if m := exchange(t, "udp", addr, c.msg); m.RCode != c.code {
			t.Errorf("%s: %s, want %s", what, m.RCode, c.code)
		}
	}
	// Nobody is answered who did not ask: answers, and what has no head.
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write(change(func(b []byte) { b[2] |= flagResponse }))
	_, _ = c.Write([]byte{1, 2, 3})
	_, _ = c.Write(good)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 512)
	if n, err := c.Read(buf); err != nil || dnsmessage.RCode(buf[3]&15) != dnsmessage.RCodeSuccess || n < len(good) {
		t.Errorf("the first answer is %x, %v: to something that was no query?", buf[:n], err)
	}
	// The longest name that there is (RFC 1035 section 2.3.4: 255 bytes).
	label := strings.Repeat("a", 61)
	long := strings.Repeat(label+".", 4) + "aaaa."
	if m := exchange(t, "udp", addr, ask(5, long, dnsmessage.TypeA, 0)); m.RCode != dnsmessage.RCodeServerFailure || m.Questions[0].Name.String() != long {
		t.Errorf("%s", m.RCode)
	}
}

func TestTooManyQueriesAreToldSo(t *testing.T) {
	s, addr := serve(t, Options{Resolvers: []netip.AddrPort{}})
	for range mostQueries {
		s.queries <- struct{}{}
	}
	defer func() {
		for range mostQueries {
			<-s.queries
		}
	}()
	for _, network := range []string{"udp", "tcp"} {
		if m := exchange(t, network, addr, ask(1, "a.example.", dnsmessage.TypeA, 0)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("%s: %s", network, m.RCode)
		}
	}
}

// What was asked before Close is answered.
func TestCloseFinishes(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	other := resolver(t, func(msg []byte) [][]byte {
		close(asked)
		<-release
		return [][]byte{response(msg, netip.MustParseAddr("192.0.2.1"))}
	})
	s, addr := serve(t, Options{Resolvers: []netip.AddrPort{other}})
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write(ask(1, "a.example.", dnsmessage.TypeA, 0))
	<-asked
	s.Close()
	close(release)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAtLeast(c, make([]byte, 512), headerLen); err != nil {
		t.Error(err)
	}
}

func TestConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("# nameserver 1.1.1.1\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\nnameserver x\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Conf: file})
	var got []string
	for _, r := range s.resolvers() {
		got = append(got, r.String())
	}
	if d := cmp.Diff([]string{"10.96.0.10:53", "[fd00::a]:53", "10.0.0.1:53"}, got); d != "" {
		t.Error(d)
	}
	if New(Options{Conf: file + ".none"}).resolvers() != nil {
		t.Error("there are resolvers without a file")
	}
	if _, err := NewNames([]plan.NameRecord{{Name: "a", Addresses: []string{"x"}}}); err == nil {
		t.Error("an address that is none was taken")
	}
}

// FuzzQuery: whatever comes, what goes out is an answer to it, and no longer than it may be.
func FuzzQuery(f *testing.F) {
	f.Add(ask(1, "a.example.", dnsmessage.TypeA, 1232))
	f.Add(ask(1, "b.a.example.", typeHTTPS, 0))
	f.Add(ask(1, ".", dnsmessage.TypeALL, 0))
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	var many []string
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{240, 240, 0, byte(i)}).String())
	}
	names, err := NewNames([]plan.NameRecord{{Name: "a.example", Addresses: many}, {Name: "*.a.example", Addresses: []string{"2001:2::1"}}})
	if err != nil {
		f.Fatal(err)
	}
	s := New(Options{Resolvers: []netip.AddrPort{}})
	s.SetNames(names)
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, v, code := s.look(msg)
		var out []byte
		switch v {
		case drop:
			return
		case refuse:
			out = q.failure(code)
		case here:
			out = q.answer(q.room)
		case forward:
			out = fit(s.ask(slices.Clone(msg), &q, "udp"), &q, q.room)
		}
		if out == nil {
			return
		}
		if len(out) > q.room || out[0] != msg[0] || out[1] != msg[1] || out[2]&flagResponse == 0 {
			t.Errorf("query %x is answered with %d bytes %x", msg, len(out), out)
		}
	})
}

// FuzzAnswer: an answer is believed only when it has the number and the question of the query.
func FuzzAnswer(f *testing.F) {
	msg := ask(0x1234, "www.example.org.", dnsmessage.TypeA, 0)
	q, _, _ := read(msg)
	f.Add(response(msg, netip.MustParseAddr("192.0.2.1")))
	f.Add(msg)
	f.Fuzz(func(t *testing.T, answer []byte) {
		if !matches(answer, 0x1234, &q) {
			return
		}
		if answer[0] != 0x12 || answer[1] != 0x34 || answer[2]&flagResponse == 0 || !strings.Contains(strings.ToLower(string(answer)), "\x03www\x07example\x03org\x00") {
			t.Errorf("%x was believed", answer)
		}
	})
}

// A plan may take a name away while it is asked for: who was found to ask for a known name is answered with what was known.
func TestNameGoesWhileItIsAskedFor(t *testing.T) {
	s := New(Options{Resolvers: []netip.AddrPort{}})
	defer s.Close()
	names, err := NewNames([]plan.NameRecord{{Name: "web", Addresses: []string{"10.0.0.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	s.SetNames(names)
	q, v, _ := s.look(ask(1, "web.", dnsmessage.TypeA, 0))
	if v != here {
		t.Fatalf("verdict %v", v)
	}
	s.SetNames(&Names{})
	var m dnsmessage.Message
	if err := m.Unpack(q.answer(q.room)); err != nil {
		t.Fatal(err)
	}
	if got := addressesOf(m); m.RCode != dnsmessage.RCodeSuccess || len(got) != 1 {
		t.Errorf("%v with %v", m.RCode, got)
	}
}

// Who says that it speaks EDNS is answered so (RFC 6891 section 6.1.1), whatever the answer is: else it takes us for a server that
// does not, and asks all others in small packets, too.
func TestEveryAnswerSpeaksEDNS(t *testing.T) {
	var many []netip.Addr
	for i := range 250 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	long := resolver(t, func(msg []byte) [][]byte { return [][]byte{response(msg, many...)} })
	_, none := serve(t, Options{Resolvers: []netip.AddrPort{}}, plan.NameRecord{Name: "web", Addresses: []string{"10.0.0.1"}})
	_, cut := serve(t, Options{Resolvers: []netip.AddrPort{long}})
	for _, tc := range []struct{ what, addr, name string }{{"a known name", none, "web."}, {"a failure", none, "other."}, {"a cut answer", cut, "other."}} {
		for _, size := range []int{0, 1232} {
			m := exchange(t, "udp", tc.addr, ask(1, tc.name, dnsmessage.TypeA, size))
			opts := 0
			for _, r := range m.Additionals {
				if r.Header.Type == dnsmessage.TypeOPT {
					opts++
				}
			}
			if want := min(size, 1); opts != want {
				t.Errorf("%s to a query of size %d: %d OPT records, want %d", tc.what, size, opts, want)
			}
		}
	}
}
