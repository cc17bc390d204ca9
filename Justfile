# Lists the recipes.
default:
    @just --list

# Builds the three programs into bin/, static and stripped.
build:
    CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/ ./cmd/kokoa ./cmd/kokoa-edge
    CGO_ENABLED=0 go build -trimpath -tags nethttpomithttp2 -ldflags='-s -w' -o bin/ ./cmd/kokoa-agent

# Runs everything that must be green (see scripts/test; try: just test quick).
test what="all":
    scripts/test {{what}}

# Runs the benchmarks whose names match.
bench name=".":
    scripts/test bench '{{name}}'

# Runs every fuzz target, each for a time.
fuzz time="10s":
    FUZZTIME={{time}} scripts/test fuzz

# Starts a whole fleet on this machine.
demo *args:
    go run ./cmd/kokoa demo {{args}}

# Builds a release into dist/, signed with the key in the file $RELEASE_KEY.
release *version:
    packaging/release.sh {{version}}

# Builds container images of the three programs, or of some, with Docker.
image *programs:
    packaging/image.sh {{programs}}

# Formats the code.
fmt:
    gofmt -w .

# Looks for mistakes without running anything.
lint:
    go vet ./...
    go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
    shellcheck --severity=warning .ci/run scripts/* packaging/*.sh

export GOTOOLCHAIN := "auto"
