package local

import "path/filepath"

// proxyArgs returns the arguments of a unit's malha-proxy; dir is its state directory.
func (m *Mesh) proxyArgs(u *unit, dir string) []string {
	log := "off"
	if m.o.AccessLog {
		log = "stdout"
	}
	args := []string{
		"--control", m.plane.Addr(),
		"--roots", m.plane.roots,
		"--token", filepath.Join(dir, "token"),
		"--node", u.name.String(),
		"--role", string(u.role),
		"--state", dir,
		"--admin", u.admin,
		"--access-log", log,
		"--log-level", "warn",
	}
	if !m.o.Shared {
		args = append(args, "--same-user")
	}
	return args
}
