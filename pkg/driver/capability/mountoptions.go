package capability

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Mount options come from StorageClasses and go to mount(8), which knows more than options of file systems: it attaches
// other files, runs programs, binds and remounts. What is not an option of mounting this device with this file system
// is refused, what means something in /etc/fstab only is left out, and so is what says nothing but the default. What is
// left has one form, so that two calls can be compared.

// refusedOptions are options of mount(8), or of a file system, that reach past the volume.
var refusedOptions = map[string]string{
	"loop": "it attaches another device", "offset": "it attaches another device",
	"sizelimit":  "it attaches another device",
	"encryption": "it attaches another device",
	"logdev":     "a volume is one device", "rtdev": "a volume is one device", "journal_dev": "a volume is one device",
	"journal_path": "a volume is one device",
	"helper":       "it names a program", "uhelper": "it names a program",
	"bind": "it is another operation", "rbind": "it is another operation", "move": "it is another operation",
	"remount": "it is another operation",
	"shared":  propagation, "private": propagation, "slave": propagation, "unbindable": propagation,
	"rshared": propagation, "rprivate": propagation, "rslave": propagation, "runbindable": propagation,
	"user": "users do not mount volumes", "users": "users do not mount volumes", "owner": "users do not mount volumes",
	"group": "users do not mount volumes",
}

const propagation = "how mounts spread is the CO's to decide (mountPropagation of the container)"

// silentOptions say what holds without them, or what only /etc/fstab is asked for.
var silentOptions = []string{"defaults", "auto", "noauto", "nofail", "_netdev", "nouser", "comment",
	"rw", "dev", "suid", "exec", "async", "atime", "diratime", "symfollow", "loud", "nomand"}

// contradictions are sets of options of which one at most can be given.
var contradictions = [][]string{{"ro", "rw"}, {"dev", "nodev"}, {"suid", "nosuid"}, {"exec", "noexec"},
	{"async", "sync"}, {"diratime", "nodiratime"},
	{"symfollow", "nosymfollow"}, {"mand", "nomand"}, {"lazytime", "nolazytime"}, {"atime", "noatime", "relatime",
		"strictatime"}}

// parseMountOptions brings mount options into one form. Errors are status errors with InvalidArgument.
func parseMountOptions(flags []string) ([]string, error) {
	var given, options []string
	values := map[string]string{}
	for _, flag := range flags {
		split, err := splitOptions(flag)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "mount options %q: %v", flag, err)
		}
		for _, option := range split {
			name, value, _ := strings.Cut(option, "=")
			if why, refused := refusedOptions[name]; refused {
				return nil, status.Errorf(codes.InvalidArgument, "mount option %q is refused: %s", option, why)
			}
			if strings.HasPrefix(name, "X-") || strings.HasPrefix(name, "verity.") {
				return nil, status.Errorf(codes.InvalidArgument, "mount option %q is refused: it is an instruction to mount(8), "+
					"not an option of the file system", option)
			}
			before, twice := values[name]
			if twice && before != value {
				return nil, status.Errorf(codes.InvalidArgument, "mount option %s is given twice, as %q and as %q", name, before,
					value)
			}
			values[name] = value
			given = append(given, name)
			if !twice && !slices.Contains(silentOptions, name) && !strings.HasPrefix(name, "x-") {
				options = append(options, option)
			}
		}
	}
	for _, set := range contradictions {
		both := slices.DeleteFunc(slices.Clone(set), func(name string) bool { return !slices.Contains(given, name) })
		if len(both) > 1 {
			return nil, status.Errorf(codes.InvalidArgument, "mount options %s contradict each other",
				strings.Join(both, " and "))
		}
	}
	return options, nil
}

// splitOptions splits at commas outside of double quotes, which stay: SELinux contexts have commas.
func splitOptions(list string) ([]string, error) {
	var options []string
	quoted, from := false, 0
	for i := 0; i <= len(list); i++ {
		switch {
		case i == len(list) && quoted:
			return nil, fmt.Errorf("a quote is not closed")
		case i == len(list), list[i] == ',' && !quoted:
			if i == from || list[from] == '=' {
				return nil, fmt.Errorf("an option is empty")
			}
			options = append(options, list[from:i])
			from = i + 1
		case list[i] == '"':
			quoted = !quoted
		case list[i] < ' ' || list[i] == 0x7f:
			return nil, fmt.Errorf("byte %#x is not allowed", list[i])
		}
	}
	return options, nil
}

// SameOptions compares mount options as sets. Those of a record of an earlier version may have another form.
func SameOptions(recorded, wanted []string) bool {
	has := RecordedOptions(recorded)
	return len(has) == len(wanted) && len(MissingOptions(has, wanted)) == 0
}

func RecordedOptions(recorded []string) []string {
	if parsed, err := parseMountOptions(recorded); err == nil {
		return parsed
	}
	return recorded
}

// MissingOptions are those of wanted that are not among has.
func MissingOptions(has, wanted []string) []string {
	return slices.DeleteFunc(slices.Clone(wanted), func(o string) bool { return slices.Contains(has, o) })
}
