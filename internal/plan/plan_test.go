package plan_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

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
