package core

import (
	"encoding/json"
	"strings"
	"testing"
)

// Every change of a role: those that are possible, and those that only a programming error asks for.
func TestRoleTurns(t *testing.T) {
	possible := map[[2]Role]bool{
		{RolePrimary, RoleDemoted}: true, {RoleDemoted, RolePrimary}: true, {RoleDemoted, RoleSecondary}: true,
		{RoleSecondary, RolePrimary}: true,
	}
	roles := []Role{RolePrimary, RoleDemoted, RoleSecondary}
	for _, from := range roles {
		for _, to := range roles {
			m := freshMeta("a")
			m.Role = from
			refused := func() (refused bool) {
				defer func() { refused = recover() != nil }()
				m.become(to)
				return false
			}()
			if want := !possible[[2]Role{from, to}]; refused != want || !refused && m.Role != to || refused && m.Role != from {
				t.Errorf("%s becomes %s: it is %s, refused: %v", from, to, m.Role, refused)
			}
		}
	}
}

// The keys of group.json are those that all releases wrote.
func TestRoleJSON(t *testing.T) {
	for role, want := range map[Role]string{
		RolePrimary: `"role":"primary"}`, RoleDemoted: `"role":"primary","demoted":true}`,
		RoleSecondary: `"role":"secondary"}`,
	} {
		m := freshMeta("a")
		m.Role = role
		text, err := json.Marshal(m)
		if err != nil || !strings.HasSuffix(string(text), want) || strings.Count(string(text), `"role"`) != 1 {
			t.Errorf("%s: %s, %v; want it to end with %s", role, text, err, want)
		}
		var again Meta
		if err := json.Unmarshal(text, &again); err != nil || again.Role != role || again.Settings != m.Settings {
			t.Errorf("%s is read as %s with %+v, %v", role, again.Role, again.Settings, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"version":1,"new":1}`), &Meta{}); err == nil {
		t.Error("a key that is not known is read")
	}
}
