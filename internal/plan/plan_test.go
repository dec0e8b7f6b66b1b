package plan_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

func TestRedacted(t *testing.T) {
	secret := []byte("the-key-itself")
	p := &plan.Plan{
		Secrets:  []plan.Secret{{Name: "a/b", Certificate: []byte("public"), Key: secret}},
		Clusters: []plan.Cluster{{Name: "plain"}, {Name: "sticky", Session: &plan.Session{Header: "x-session", Key: secret}}, {Name: "ruled", RuleSession: &plan.Session{Key: secret}}},
	}
	before, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := json.Marshal(p.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	in64, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{shown, fmt.Appendf(nil, "%v %+v %#v", p.Secrets, p.Clusters[1].Session, p.Clusters[1].Session)} {
		if bytes.Contains(text, secret) || bytes.Contains(text, bytes.Trim(in64, `"`)) {
			t.Errorf("it shows the key: %s", text)
		}
	}
	if !bytes.Contains(shown, []byte("x-session")) || !bytes.Contains(shown, []byte(`"plain"`)) {
		t.Errorf("too little is shown: %s", shown)
	}
	if after, _ := json.Marshal(p); !bytes.Equal(before, after) {
		t.Error("the plan itself has changed")
	}
}

// The bits of retry conditions travel: one that means something else than yesterday is misread by every proxy that is older or newer.
func TestRetryConditionsKeepTheirBits(t *testing.T) {
	for i, on := range []plan.RetryOn{
		plan.RetryConnectFailure, plan.RetryRefusedStream, plan.RetryReset, plan.Retry5xx, plan.RetryGatewayError, plan.RetryRetriable4xx, plan.RetryStatusCodes,
		plan.RetryGRPCCancelled, plan.RetryGRPCDeadline, plan.RetryGRPCInternal, plan.RetryGRPCExhausted, plan.RetryGRPCUnavailable, plan.RetryFailureClass,
	} {
		if want := plan.RetryOn(1) << i; on != want {
			t.Errorf("condition %d (%v) is %#x, want %#x: new ones come last", i, on, uint32(on), uint32(want))
		}
	}
}

// So do the numbers of protocols.
func TestProtocolsKeepTheirNumbers(t *testing.T) {
	for i, p := range []ident.Protocol{ident.Detect, ident.TCP, ident.HTTP, ident.HTTP2, ident.GRPC, ident.TLS, ident.UDP} {
		if int(p) != i {
			t.Errorf("%s is %d, want %d: new ones come last", p, p, i)
		}
	}
}
