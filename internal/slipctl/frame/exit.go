package frame

// Exit statuses. docs/slipctl.md explains them to users.
const (
	ExitOK           = 0
	ExitFailure      = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitPrecondition = 4
	exitTimeout      = 5
)

// ExitHelp is what the help says about them.
const ExitHelp = `0 done, or it was so already; 1 failed; 2 wrong usage, or not confirmed by --yes; 3 a named
object does not exist; 4 another command has to come first, the message names it; 5 --timeout ended a wait.`
