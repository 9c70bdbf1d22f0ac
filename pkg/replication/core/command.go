package core

import (
	"fmt"
	"strings"
)

// Command is a command of slipctl that a message names, with the site at which it is to be given. Messages are made
// with it alone, so that a test can run through all of them.
type Command struct {
	Site string
	Verb CommandVerb
	Name string // of the group
}

// CommandVerb is a command of slipctl about a group, with %s for its name.
type CommandVerb string

const (
	CommandStatus   CommandVerb = "slipctl group status %s"
	CommandPromote  CommandVerb = "slipctl group promote %s"
	CommandForce    CommandVerb = "slipctl group promote %s --force"
	CommandDemote   CommandVerb = "slipctl group demote %s"
	CommandRelocate CommandVerb = "slipctl group relocate %s"
	CommandYield    CommandVerb = "slipctl group yield %s"
	CommandDelete   CommandVerb = "slipctl group delete %s --force"
	CommandResume   CommandVerb = "slipctl group resume %s"
	CommandCommit   CommandVerb = "slipctl group commit %s"
	CommandRollBack CommandVerb = "slipctl group rollback %s"
)

// CommandVerbs are all that messages name. test/byhand runs each as a message names it.
var CommandVerbs = []CommandVerb{CommandStatus, CommandPromote, CommandForce, CommandDemote, CommandRelocate,
	CommandYield, CommandDelete, CommandResume, CommandCommit, CommandRollBack}

func (c Command) String() string {
	return fmt.Sprintf("`"+string(c.Verb)+"` at %s", c.Name, c.Site)
}

// attachedText says that volumes are in use, and what to do about it.
func attachedText(m *Meta, volumes []string, then CommandVerb) string {
	return fmt.Sprintf("volumes are attached at %s: %s; stop the application and unmount them there, then %s", m.Site,
		strings.Join(volumes, ", "), Command{m.Site, then, m.Name})
}
