package h2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// both decodes blocks with our decoder and with x/net's, and fails where they differ.
func both(t *testing.T, table uint32, blocks [][]byte) {
	t.Helper()
	ours := newDecTable(table)
	var want []hpack.HeaderField
	theirs := hpack.NewDecoder(table, func(f hpack.HeaderField) { want = append(want, f) })
	for n, block := range blocks {
		want = want[:0]
		_, werr := theirs.Write(block)
		if cerr := theirs.Close(); werr == nil {
			werr = cerr
		}
		var a Arena
		var got []hpack.HeaderField
		err := ours.walk(block, &a, func(f *decoded) bool {
			got = append(got, hpack.HeaderField{Name: string(f.name), Value: string(f.value)})
			if f.kind != kindOf(f.name) {
				t.Errorf("block %d: %q has kind %d", n, f.name, f.kind)
			}
			return true
		})
		// We are stricter about updates amid a block, and take any number of them at its start (RFC 7541 section 4.2).
		if errors.Is(err, errUpdate) || err == nil && werr != nil && strings.Contains(werr.Error(), "size update MUST occur") {
			return
		}
		if (err == nil) != (werr == nil) {
			t.Fatalf("block %d %x: error %v, x/net says %v", n, block, err, werr)
		}
		if err != nil {
			return
		}
		if len(got) != len(want) {
			t.Fatalf("block %d %x: %d fields, x/net has %d", n, block, len(got), len(want))
		}
		for i := range got {
			if got[i].Name != want[i].Name || got[i].Value != want[i].Value {
				t.Fatalf("block %d field %d: %q, x/net has %q", n, i, got[i], want[i])
			}
		}
		if ours.size > ours.limit || ours.n > len(ours.entries) {
			t.Fatalf("block %d: the table has %d bytes of %d, %d entries", n, ours.size, ours.limit, ours.n)
		}
	}
}

// blocksOf cuts fuzz input: a byte of length, then that many bytes.
func blocksOf(b []byte) (blocks [][]byte) {
	for len(b) > 1 {
		n := min(int(b[0]), len(b)-1)
		blocks = append(blocks, b[1:1+n])
		b = b[1+n:]
	}
	return blocks
}

func FuzzHPACK(f *testing.F) {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	var seed []byte
	for range 3 {
		for _, h := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":path", Value: "/grpc.Test/Unary"}, {Name: "x-request-id", Value: "5f0c6c4e"},
			{Name: "cookie", Value: "a=b", Sensitive: true}, {Name: "x", Value: strings.Repeat("long", 20)}} {
			_ = e.WriteField(h)
		}
		seed = append(append(seed, byte(buf.Len())), buf.Bytes()...)
		buf.Reset()
	}
	f.Add(uint16(4096), seed)
	f.Add(uint16(64), seed)
	f.Add(uint16(4096), []byte("\x03\x3f\xe1\x1f\x02\x20\x82\x05\x40\x82\x94\xe7\x01a"))
	f.Fuzz(func(t *testing.T, table uint16, b []byte) { both(t, uint32(table), blocksOf(b)) })
}

// A table that turns over many times, of every size, keeps its entries apart.
func TestTableTurnsOver(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []uint32{0, 32, 33, 64, 100, 500, 4096} {
		var buf bytes.Buffer
		e := hpack.NewEncoder(&buf)
		e.SetMaxDynamicTableSizeLimit(size)
		e.SetMaxDynamicTableSize(size)
		var blocks [][]byte
		for range 3000 {
			for range 1 + r.IntN(5) {
				name := strings.Repeat("n", r.IntN(int(size)/3+4)) + string(rune('a'+r.IntN(26)))
				value := strings.Repeat(string(rune(33+r.IntN(90))), r.IntN(int(size)/2+4))
				_ = e.WriteField(hpack.HeaderField{Name: name, Value: value})
			}
			if r.IntN(50) == 0 {
				e.SetMaxDynamicTableSize(uint32(r.IntN(int(size) + 1)))
			}
			blocks = append(blocks, bytes.Clone(buf.Bytes()))
			buf.Reset()
		}
		both(t, size, blocks)
	}
}

func TestHuffman(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		s := make([]byte, r.IntN(40))
		for i := range s {
			s[i] = all[r.IntN(256)]
		}
		got, err := huffman.decode(nil, hpack.AppendHuffmanString(nil, string(s)))
		if err != nil || !bytes.Equal(got, s) {
			t.Fatalf("%x became %x, %v", s, got, err)
		}
		// Noise: both take it, or neither.
		var want bytes.Buffer
		_, werr := hpack.HuffmanDecode(&want, s)
		got, err = huffman.decode(nil, s)
		if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%x is %x, %v; x/net says %x, %v", s, got, err, want.Bytes(), werr)
		}
	}
	for _, bad := range []string{"\xff\xff\xff\xff", "\x00", "\x07\xff", "\x1f\xff", "\xff", "\x3f\xff\xff\xff\xff"} {
		if _, err := huffman.decode(nil, []byte(bad)); err == nil {
			if _, werr := hpack.HuffmanDecode(&bytes.Buffer{}, []byte(bad)); werr != nil {
				t.Errorf("%x was taken", bad)
			}
		}
	}
}

// A head on a warm connection is decoded without an allocation, also one that nobody indexes.
func TestDecodingDoesNotAllocate(t *testing.T) {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	fields := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/grpc.Test/Unary"},
		{Name: ":authority", Value: "backend:80"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
		{Name: "x-request-id", Value: "5f0c6c4e-6d7f-4a58-9f0f-1d6f3a1b2c3d", Sensitive: true}}
	block := func() []byte {
		buf.Reset()
		for _, f := range fields {
			_ = e.WriteField(f)
		}
		return bytes.Clone(buf.Bytes())
	}
	d := NewDecoder(InitialTable, Limits{Bytes: 60 << 10, Fields: 100, TrailerBytes: 8 << 10})
	var a Arena
	var r message.Request
	decode := func(b []byte) {
		a.Reset()
		r.Reset()
		if err := d.Request(b, false, &a, &r); err != nil || len(r.Fields) != 3 {
			t.Fatal(r.Fields, err)
		}
	}
	decode(block())
	warm := block()
	if n := testing.AllocsPerRun(1000, func() { decode(warm) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
