// Kokoa-agent keeps tunnels to the edges of a fleet and forwards what comes
// through them to services of its host.
package main

import "github.com/kokoa-proxy/kokoa/agent/command"

func main() { command.Main() }
