package conn

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// toH1 decodes an HTTP/2 header block and writes the request as HTTP/1, as the proxy does.
func toH1(block []byte, end bool) ([]byte, error) {
	var a h2.Arena
	var r message.Request
	if err := h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: 1 << 16, Fields: 100}).Request(block, end, &a, &r); err != nil {
		return nil, err
	}
	if len(r.Upgrade) > 0 {
		return nil, fmt.Errorf("an extended CONNECT is the stack's")
	}
	return h1.AppendRequest(nil, &r), nil
}

// No byte in any place of an HTTP/2 request becomes more than one HTTP/1 request, or one with other fields
// (CVE-2023-27493, CVE-2021-39240 and their kin): the stream is refused, or the second parser reads one request in which the
// byte is where it was.
func TestEveryByteH2ToH1(t *testing.T) {
	t.Parallel()
	lists := map[string][2]string{ // what stands before and after the byte
		":method":    {"GE", "T"},
		":path":      {"/a", "b"},
		":path ":     {"", "/a"}, // the space is not sent: first byte
		":scheme":    {"htt", "p"},
		":authority": {"a", "b"},
		"host":       {"a", "b"},
		"x-value":    {"a", "b"},
		"cookie":     {"a", "b"},
		"te":         {"trailers", ""},
	}
	for place, around := range lists {
		for b := range 256 {
			value := around[0] + string([]byte{byte(b)}) + around[1]
			checkToH1(t, strings.TrimSpace(place), value)
		}
	}
	for b := range 256 { // and in a name
		checkToH1(t, "x"+string([]byte{byte(b)})+"y", "v")
		checkToH1(t, string([]byte{byte(b)})+"y", "v")
	}
	for _, name := range []string{"connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "content-length", "http2-settings", "Host", "Transfer-Encoding", "",
		":status", ":unknown", ":path", ":method", ":authority", "content-length: 0\r\nx"} {
		for _, value := range []string{"", "close", "chunked", "5", "0", "h2c", "a\r\nb: c", "trailers"} {
			checkToH1(t, name, value)
		}
	}
}

func checkToH1(t *testing.T, name, value string) {
	t.Helper()
	fields := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: "a"}}
	replaced := false
	for i := range fields {
		if fields[i].Name == name && value != "" {
			fields[i].Value = value
			replaced = true
		}
	}
	if !replaced {
		fields = append(fields, hpack.HeaderField{Name: name, Value: value})
	}
	fields = append(fields, hpack.HeaderField{Name: "x-last", Value: "1"})
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range fields {
		_ = enc.WriteField(f)
	}
	out, err := toH1(b.Bytes(), true)
	if err != nil {
		return
	}
	all, err := h1test.ReadAll(string(out), "", false)
	if err != nil || len(all) != 1 || all[0].Get("x-last") != "1" {
		t.Errorf("%q: %q became %q: %d messages, %v", name, value, out, len(all), err)
		return
	}
	for _, f := range all[0].Fields {
		if f[0] != "host" && f[0] != "x-last" && f[0] != name && !(name == "te" && f[0] == "connection") {
			t.Errorf("%q: %q became a field %q", name, value, f)
		}
	}
}
