#!/usr/bin/env bash
#
# Builds container images with Docker, from nothing but our programs and the CAs that
# this host trusts.
#
#   packaging/image.sh [PROGRAM...]     kokoa, kokoa-edge and kokoa-agent, or some
#
#   PLATFORM=linux-arm64   for another platform: linux-amd64 (default), -arm64, -armv7
#   BINARIES=DIR           takes programs that are built already, as in a release's archive
#   VERSION=v1.2.3         what the programs call themselves (v0.0.0), and the images' tag
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

platform=${PLATFORM:-linux-amd64}
version=${VERSION:-v0.0.0}
authorities=/etc/ssl/certs/ca-certificates.crt

main() {
	[ $# -gt 0 ] || set -- kokoa kokoa-edge kokoa-agent
	[ -s $authorities ] || die "there is no $authorities; install ca-certificates"
	context=$(mktemp -d)
	trap 'rm -rf "$context"' EXIT
	local program
	for program; do
		image "$program"
	done
}

image() {
	local program=$1 arch=${platform#linux-}
	local as=linux/$arch
	[ "$arch" != armv7 ] || as=linux/arm/v7
	rm -rf "${context:?}"/*
	mkdir "$context/empty"
	cp $authorities "$context/ca-certificates.crt"
	echo "kokoa:x:65532:65532::/:" >"$context/passwd"
	if [ -n "${BINARIES:-}" ]; then
		cp "$BINARIES/$program" "$context/"
	else
		local tags=
		[ "$program" != kokoa-agent ] || tags=nethttpomithttp2 # as in release.sh
		GOTOOLCHAIN=auto CGO_ENABLED=0 GOOS=linux GOARCH=${arch%v7} GOARM=7 go build -trimpath -buildvcs=false -tags "$tags" \
			-ldflags "-s -w -X github.com/kokoa-proxy/kokoa/internal/program.release=$version" \
			-o "$context/" "./cmd/$program"
	fi
	chmod 755 "$context/$program"
	docker build --quiet --platform "$as" --tag "$program:$version" \
		--file "packaging/docker/${program#kokoa-}.Dockerfile" "$context"
}

die() {
	echo "packaging/image.sh: $1" >&2
	exit 1
}

main "$@"
