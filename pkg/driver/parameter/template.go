package parameter

import (
	"fmt"
	"maps"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// groupVariables may be in ParamConsistencyGroup, so that one StorageClass makes a group for each namespace. Their
// values are what the provisioner says of the claim when it runs with --extra-create-metadata.
var groupVariables = map[string]string{
	"${pvc.namespace}": kubernetesPrefix + "pvc/namespace",
	"${pvc.name}":      kubernetesPrefix + "pvc/name",
	"${pv.name}":       kubernetesPrefix + "pv/name",
}

// isGroupTemplate reports whether a group's name has variables in it; nothing with a $ is a name.
func isGroupTemplate(value string) bool { return strings.Contains(value, "$") }

// expandGroupTemplate replaces each variable by what value returns for its key.
func expandGroupTemplate(template string, value func(variable, key string) (string, error)) (string, error) {
	var b strings.Builder
	for rest := template; rest != ""; {
		before, after, found := strings.Cut(rest, "$")
		b.WriteString(before)
		if !found {
			break
		}
		end := strings.Index(after, "}")
		variable := "$" + after[:end+1]
		key, known := groupVariables[variable]
		if end < 0 || !known {
			return "", fmt.Errorf("%q: after the $ there is no variable: ${pvc.namespace}, ${pvc.name} and ${pv.name} are known",
				template)
		}
		text, err := value(variable, key)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
		rest = after[end+1:]
	}
	return b.String(), nil
}

// checkGroupTemplate finds out what would never be a name, whatever the claim.
func checkGroupTemplate(template string) error {
	sample, err := expandGroupTemplate(template, func(string, string) (string, error) { return "x", nil })
	if err == nil {
		_, err = parseName(sample)
	}
	return err
}

// ExpandParameters returns a CreateVolume's parameters with the group's name in place of its template. Everything after
// it, the volume's record included, knows the name only.
func ExpandParameters(parameters map[string]string) (map[string]string, error) {
	template := parameters[KeyConsistencyGroup]
	if !isGroupTemplate(template) {
		return parameters, nil
	}
	fail := func(err error) (map[string]string, error) {
		return nil, status.Errorf(codes.InvalidArgument, "parameter %s: %v", KeyConsistencyGroup, err)
	}
	name, err := expandGroupTemplate(template, func(variable, key string) (string, error) {
		if parameters[key] == "" {
			return "", fmt.Errorf("%q: the call says nothing about %s (%s): run the provisioner with --extra-create-metadata",
				template, variable, key)
		}
		return parameters[key], nil
	})
	if err != nil {
		return fail(err)
	}
	if _, err := parseName(name); err != nil {
		return fail(fmt.Errorf("%q for this claim: %w", template, err))
	}
	expanded := maps.Clone(parameters)
	expanded[KeyConsistencyGroup] = name
	return expanded, nil
}
