package plugin

// ListTokenPrefix is followed by the id of the last object of the previous page. Lists are sorted by id, so a token
// stays valid when objects appear or disappear between pages, including the one that it names.
const ListTokenPrefix = "after:"

// ListTokenAfter returns the starting_token of the objects after an id. It is the same on all nodes, so that a list
// over several nodes can continue after any object.
func ListTokenAfter(id string) string { return ListTokenPrefix + id }
