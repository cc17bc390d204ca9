// Command server is Gitea, as its own program is, for the tests beside it.
package main

import (
	"os"
	"time"

	"code.gitea.io/gitea/cmd"
	"code.gitea.io/gitea/modules/log"
	"code.gitea.io/gitea/modules/setting"
	"github.com/urfave/cli/v3"
)

// version is set by the linker to that of the module.
var version string

func main() {
	setting.AppVer = version
	setting.AppStartTime = time.Now().UTC()
	cli.OsExiter = func(code int) {
		log.GetManager().Close()
		os.Exit(code)
	}
	_ = cmd.RunMainApp(cmd.NewMainApp(cmd.AppVersion{Version: version}), os.Args...) // it has said why, and left
	log.GetManager().Close()
}
