package gateway

import (
	"fmt"
	"hash/fnv"
	"strings"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/plan"
)

// session reads how a rule keeps clients where they are (SessionPersistence). One without a name has one of its own: sessions of
// two rules are different ones.
func (t *translation) session(at manifest.Cursor, in *v1.SessionPersistence) *plan.Session {
	if in == nil {
		return nil
	}
	name := value(in.SessionName, "")
	if name == "" {
		h := fnv.New32a()
		_, _ = h.Write([]byte(t.Name.String() + " " + at.Origin().Rule)) // a hash takes everything
		name = fmt.Sprintf("session-%08x", h.Sum32())
	}
	lifetime := plan.Duration(length(in.AbsoluteTimeout))
	if value(in.Type, string(v1.CookieBasedSessionPersistence)) == string(v1.HeaderBasedSessionPersistence) {
		return &plan.Session{Header: strings.ToLower(name), Lifetime: lifetime}
	}
	out := &plan.Session{Cookie: &plan.Cookie{Name: name, Path: "/"}, Lifetime: lifetime}
	if in.CookieConfig != nil && value(in.CookieConfig.LifetimeType, string(v1.SessionCookieLifetimeType)) == string(v1.PermanentCookieLifetimeType) {
		out.Cookie.TTL = lifetime
	}
	return out
}

// session finds names that neither a cookie nor a header can have, and headers that belong to the connection or the mesh.
func (c checker) session(at manifest.Cursor, in *v1.SessionPersistence) {
	if in == nil || value(in.SessionName, "") == "" {
		return
	}
	name, here := *in.SessionName, at.Field("sessionName")
	switch {
	case strings.HasPrefix(strings.ToLower(name), "x-malha-"):
		c.Error(manifest.CodeBadValue, here, "choose another name", "names that begin with x-malha- are the proxies' own")
	case !isToken(name):
		c.Error(manifest.CodeBadValue, here, "letters, digits, '-' and '_'", "%q can be the name of neither a cookie nor a header", name)
	case value(in.Type, string(v1.CookieBasedSessionPersistence)) == string(v1.HeaderBasedSessionPersistence):
		c.change(here, name, "")
	}
}
