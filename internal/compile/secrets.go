package compile

import (
	"cmp"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// secret returns the plan name of a secret that something refers to. One that the proxy may not have stays a name that is
// not in the plan: what refers to it fails closed.
func (c *compiler) secret(name string, origin ident.Origin) string {
	name = model.SecretName(name, c.scope.Node.Name.Namespace)
	if _, ok := c.findSecret(name); name != "" && !ok {
		c.report(model.Diagnostic{
			Code: model.CodeNoSecret, Severity: model.Warning, Origin: origin,
			Message: "Secret " + name + " does not exist, or is not for proxies in namespace " + c.scope.Node.Name.Namespace + ": connections that need it fail",
			Hint:    "create it in the namespace of the proxy",
		})
	}
	return name
}

func (c *compiler) findSecret(name string) (*model.Secret, bool) {
	i, ok := slices.BinarySearchFunc(c.scope.Secrets, name, func(s *model.Secret, n string) int { return cmp.Compare(s.Secret.Name, n) })
	if !ok {
		return nil, false
	}
	return c.scope.Secrets[i], true
}
