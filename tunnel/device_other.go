//go:build !linux

package tunnel

// makes are those of a system where only the user-space stack was tried.
var makes = []maker{
	{Kernel, func(Config) (*device, error) { return nil, unavailable("only on Linux") }},
	{TUN, func(Config) (*device, error) { return nil, unavailable("only on Linux") }},
	{Userspace, openUserspace},
}
