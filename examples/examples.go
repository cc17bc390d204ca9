// Package examples holds the example fleet repo, which `kokoa demo` starts from.
package examples

import "embed"

// FleetRepo is the folder fleet-repo.
//
//go:embed fleet-repo
var FleetRepo embed.FS
