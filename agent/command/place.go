package command

import (
	"os"
	"path/filepath"
	"runtime"

	"github.com/kokoa-proxy/kokoa/agent"
)

// The environment variables that stand in for flags: containers have no others.
const (
	envControl   = "KOKOA_CONTROL_PLANE"
	envName      = "KOKOA_ORIGIN_NAME"
	envToken     = "KOKOA_TOKEN"
	envTokenFile = "KOKOA_TOKEN_FILE"
	envForge     = "KOKOA_FORGE_TOKEN"
	envConfig    = "KOKOA_CONFIG"
	envData      = "KOKOA_DATA"
	envCA        = "KOKOA_CA"
)

// place is where an agent lives on a host. All paths are absolute.
type place struct {
	binary, config, data string
	// prefix is what all three are below, when the user chose one.
	prefix string
	// system is the host's own agent, for all users.
	system bool
}

// place is where this user's agent lives, or one below a prefix of its own.
func (c *commands) place(prefix string) place {
	if prefix != "" && prefix != "/" {
		p := system(prefix)
		p.prefix, p.system = prefix, false
		return p
	}
	p := system("/")
	if os.Geteuid() != 0 {
		p = c.userPlace()
	}
	if data := c.getenv(envData); data != "" {
		p.data = data
	}
	switch {
	case c.getenv(envConfig) != "":
		p.config = c.getenv(envConfig)
	case c.getenv(envData) != "" || c.getenv(envControl) != "":
		// A container keeps one folder.
		p.config = filepath.Join(p.data, configName)
	}
	return p
}

const configName = "agent.json"

// system is where root's agent lives, below a prefix.
func system(prefix string) place {
	state := "var/lib"
	if runtime.GOOS == "darwin" {
		state = "var/db"
	}
	return place{
		binary: filepath.Join(prefix, "usr/local/bin/kokoa-agent"),
		config: filepath.Join(prefix, "etc/kokoa-agent", configName),
		data:   filepath.Join(prefix, state, "kokoa-agent"),
		system: true,
	}
}

func (c *commands) userPlace() place {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/" // a user without a home sees where it fails
	}
	xdg := func(env, otherwise string) string {
		if dir := c.getenv(env); filepath.IsAbs(dir) {
			return dir
		}
		return filepath.Join(home, otherwise)
	}
	return place{
		binary: filepath.Join(home, ".local/bin/kokoa-agent"),
		config: filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "kokoa-agent", configName),
		data:   filepath.Join(xdg("XDG_STATE_HOME", ".local/state"), "kokoa-agent"),
	}
}

// placeFlags name an agent that is there already.
type placeFlags struct {
	prefix, config, data *string
}

func (f flagSet) place() placeFlags {
	return placeFlags{f.String("prefix", "", ""), f.String("config", "", ""), f.String("data", "", "")}
}

// place is the agent that the flags name: what they leave out is as its config says,
// or else where this user's agent lives.
func (p placeFlags) place(c *commands) (place, error) {
	prefix, err := absolute(*p.prefix)
	if err != nil {
		return place{}, err
	}
	found := c.place(prefix)
	for _, given := range []struct {
		from string
		to   *string
	}{{*p.config, &found.config}, {*p.data, &found.data}} {
		if given.from == "" {
			continue
		}
		if *given.to, err = absolute(given.from); err != nil {
			return place{}, err
		}
	}
	if *p.data == "" {
		if b, err := agent.ReadBootstrap(found.config); err == nil {
			found.data = b.Data
		}
	}
	return found, nil
}
