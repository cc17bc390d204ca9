#!/usr/bin/env bash
#
# Builds a release, every byte of it decided by the commit, the version and the Go
# release in go.mod.
#
#   packaging/release.sh [VERSION [DIR]]
#
# VERSION is like v1.2.3; without it, the commit's tag, or else one of its time and hash.
# DIR (dist) becomes:
#
#   kokoa-VERSION-linux-{amd64,arm64,armv7}.tar.gz   the three programs and their units
#   kokoa-agent-VERSION-darwin-{amd64,arm64}.tar.gz  the agent for laptops
#   kokoa-agents-VERSION.tar.gz                      what a control plane offers to hosts
#   *.cdx.json                                       what each program is made of (SBOM)
#   SHA256SUMS, SHA256SUMS.sig                       over all of these
#
#   RELEASE_KEY=FILE       signs, with an ECDSA key on P-256 in PEM:
#                          openssl ecparam -name prime256v1 -genkey -noout -out FILE
#   SOURCE_DATE_EPOCH=N    time of all files, for sources that are no Git checkout
#   PLATFORMS="A B"        only these: linux-amd64, darwin-arm64, ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

# What an environment could change.
unset GOFLAGS GOEXPERIMENT GOFIPS140
export GOTOOLCHAIN=auto CGO_ENABLED=0 GOWORK=off GOAMD64=v1 GOARM64=v8.0 GOARM=7 LC_ALL=C TZ=UTC

module=github.com/kokoa-proxy/kokoa
sbom=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
read -ra platforms <<<"${PLATFORMS:-linux-amd64 linux-arm64 linux-armv7 darwin-amd64 darwin-arm64}"

main() {
	local version=${1:-} out=${2:-dist}
	[ -n "$version" ] || version=$(this_version)
	[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$ ]] || die "version \"$version\" is not one like v1.2.3"
	epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
	plain=${version#v}
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	mkdir "$work/out" "$work/agents"

	local platform
	for platform in "${platforms[@]}"; do
		case $platform in
		linux-*)
			build "$platform" kokoa kokoa-edge kokoa-agent
			mkdir "$work/$platform/systemd"
			cp packaging/systemd/*.service packaging/systemd/*.conf "$work/$platform/systemd/"
			pack "kokoa-$plain-$platform" "$work/$platform"
			;;
		*)
			build "$platform" kokoa-agent
			pack "kokoa-agent-$plain-$platform" "$work/$platform"
			;;
		esac
		cp "$work/$platform/kokoa-agent" "$work/agents/kokoa-agent-$platform"
	done
	echo "$version" >"$work/agents/VERSION"
	pack "kokoa-agents-$plain" "$work/agents"

	(cd "$work/out" && sha256sum -- * >"$work/SHA256SUMS")
	mv "$work/SHA256SUMS" "$work/out/"
	if [ -n "${RELEASE_KEY:-}" ]; then
		openssl dgst -sha256 -sign "$RELEASE_KEY" -out "$work/out/SHA256SUMS.sig" "$work/out/SHA256SUMS"
	fi
	rm -rf "$out"
	mkdir -p "$(dirname "$out")"
	cp -r "$work/out" "$out"
	ls -l "$out"
	if [ -z "${RELEASE_KEY:-}" ]; then
		cat >&2 <<-TEXT

			**********************************************************************
			  UNSIGNED: RELEASE_KEY names no key, so nobody can tell that these
			  files are from you. Do not publish them.
			**********************************************************************
		TEXT
	fi
}

# this_version is the tag of the commit that is checked out, or one of its time and hash
# as Go makes them. Sources that were changed say so.
this_version() {
	local version changed=
	[ -z "$(git status --porcelain)" ] || changed=+dirty
	version=$(git describe --exact-match --match 'v[0-9]*' 2>/dev/null) ||
		version=v0.0.0-$(git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd)-$(git rev-parse --short=12 HEAD)
	echo "$version$changed"
}

# build PLATFORM PROGRAM... builds programs into a folder named for the platform.
build() {
	local platform=$1 os=${1%-*} arch=${1#*-} program
	[[ $platform =~ ^(linux-(amd64|arm64|armv7)|darwin-(amd64|arm64))$ ]] || die "there are no releases for \"$platform\""
	shift
	for program; do
		echo "building $program for $platform"
		local tags=
		[ "$program" != kokoa-agent ] || tags=nethttpomithttp2 # it has no use for HTTP/2, and small boards have little room
		GOOS=$os GOARCH=${arch%v7} go build -trimpath -buildvcs=false -tags "$tags" \
			-ldflags "-s -w -buildid= -X $module/internal/program.release=$version" \
			-o "$work/$platform/$program" "./cmd/$program"
		# Its serial number is made of the program's checksum, not of chance.
		local sum
		sum=$(sha256sum <"$work/$platform/$program")
		GOFLAGS=-trimpath go run "$sbom" bin -json -std -notimestamp -version "$version" \
			-serial "${sum:0:8}-${sum:8:4}-8${sum:13:3}-8${sum:17:3}-${sum:20:12}" \
			-output "$work/out/$program-$plain-$platform.cdx.json" "$work/$platform/$program" 2>/dev/null ||
			die "no SBOM of $program for $platform"
	done
}

# pack NAME DIR makes an archive of a folder whose bytes depend on nothing but its files.
pack() {
	cp LICENSE "$2/"
	tar -C "$2" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
		--mode=u=rwX,go=rX --format=ustar --transform="s,^\.,$1," -cf - . |
		gzip -9n >"$work/out/$1.tar.gz"
}

die() {
	echo "packaging/release.sh: $1" >&2
	exit 1
}

main "$@"
