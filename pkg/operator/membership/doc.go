// Package membership decides which claims are replicated, and why others are not, by the objects of a cluster alone.
//
//   - Objects are those of one namespace. Judge says of a claim to which ConsistencyGroup it belongs, or why to none.
//     Wanted and Allowed say which groups labels ask for, and whether a group may replicate to its RemoteSite.
//   - Coverage says of each claim whether it is protected, or why not.
//
// It asks no node and builds on all systems: the plugin of kubectl gives the same answer as the operator. Functions
// have no state.
package membership
