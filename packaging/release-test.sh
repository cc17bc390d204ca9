#!/usr/bin/env bash
#
# Builds the release of the commit twice and compares every byte: from two copies at
# different paths, the second with an empty build cache, as another user would. Then
# checks what is in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

# copy DIR copies the commit, without its history.
copy() {
	mkdir -p "$1"
	git archive HEAD | tar -xC "$1"
}

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
GOMODCACHE=$(go env GOMODCACHE)
export SOURCE_DATE_EPOCH GOMODCACHE
copy "$scratch/one"
copy "$scratch/another/and/deeper/copy"
openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/key"
openssl ec -in "$scratch/key" -pubout -out "$scratch/public" 2>/dev/null

RELEASE_KEY=$scratch/key "$scratch/one/packaging/release.sh" v1.2.3 "$scratch/first"
mkdir "$scratch/tmp"
(
	umask 077
	export GOCACHE=$scratch/cache TMPDIR=$scratch/tmp HOME=$scratch TZ=Asia/Tokyo
	"$scratch/another/and/deeper/copy/packaging/release.sh" v1.2.3 "$scratch/second"
)

openssl dgst -sha256 -verify "$scratch/public" -signature "$scratch/first/SHA256SUMS.sig" "$scratch/first/SHA256SUMS"
(cd "$scratch/first" && sha256sum --quiet --strict --check SHA256SUMS)
rm "$scratch/first/SHA256SUMS.sig" # chance is part of a signature
diff -r "$scratch/first" "$scratch/second"
[ -z "$(ls -A "$scratch/tmp")" ] || { echo "left: $(ls -A "$scratch/tmp")"; exit 1; }

mkdir "$scratch/unpacked"
tar -xzf "$scratch/first/kokoa-1.2.3-linux-amd64.tar.gz" -C "$scratch/unpacked"
"$scratch/unpacked/kokoa-1.2.3-linux-amd64/kokoa-agent" version | grep '^kokoa-agent v1.2.3 '
echo "two builds, equal bytes: $(find "$scratch/first" -type f | wc -l) files, $(du -sb "$scratch/first" | cut -f1) bytes"
