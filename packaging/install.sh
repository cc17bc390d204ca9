#!/bin/sh
# Installs kokoa-agent on this host, from the control plane at the address below:
#
#   curl -fsSL ADDRESS/install.sh | sh -s -- --name NAME
#
# The arguments are those of "kokoa-agent install". The join token is never one of
# them: it is in KOKOA_TOKEN, in a file (--token-file FILE) or on standard input, or it
# is asked for. --ca FILE names the CA of a control plane with a certificate of its own.
#
# Nothing runs that the key below has not signed. A shell reads up to the last brace
# before it runs anything, so a script that was cut off does nothing.
{
set -eu
mask=$(umask)
umask 077
LC_ALL=C
export LC_ALL
url='@URL@'
key='@KEY@'

main() {
	prefix='' ca='' token=${KOKOA_TOKEN:-}${KOKOA_TOKEN_FILE:-} asking=''
	arguments "$@"
	case $url in
	https://*) scheme=https ;;
	http://localhost | http://localhost[:/]* | http://127.0.0.1 | http://127.0.0.1[:/]* | http://\[::1\] | http://\[::1\][:/]*) scheme=http ;;
	*) die "$url does not begin with https://, and only this host itself is asked without TLS" ;;
	esac
	for tool in openssl awk head mktemp; do
		has $tool || die "this needs $tool, which is not installed; without it nothing can be checked"
	done
	has curl || has wget || die "this needs curl or wget, and neither is installed"
	platform
	tmp=$(mktemp -d)
	# Neither an impatient interrupt nor a terminal that is gone keeps the files.
	trap 'trap "" HUP INT TERM; rm -rf "$tmp"; [ -z "$asking" ] || stty echo </dev/tty || :' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	printf '%s\n' "$key" >"$tmp/key"
	get manifest 65536
	get manifest.sig 1024
	[ -s "$tmp/manifest.sig" ] || die "$url gave no list of downloads; try again later"
	openssl dgst -sha256 -verify "$tmp/key" -signature "$tmp/manifest.sig" "$tmp/manifest" >/dev/null 2>&1 ||
		die "the list of downloads is not signed by the control plane that made this script; get the script anew, and do not go on if this stays"
	{
		IFS= read -r form
		read -r _ version
		read -r _ expires
	} <"$tmp/manifest"
	[ "$form" = "kokoa agent manifest v1" ] || die "this script is too old for the list of downloads; get it anew"
	now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	[ "$(printf '%s\n%s\n' "$expires" "$now" | sort | head -n 1)" = "$now" ] ||
		die "the list of downloads was good until $expires, and here it is $now: either it is an old copy, or the clock of this host is wrong"
	file=$(awk -v name="kokoa-agent-$os-$arch" '$3 == name { print $1, $2 }' "$tmp/manifest")
	[ -n "$file" ] || die "this control plane has no kokoa-agent for $os/$arch"
	sum=${file% *} size=${file#* }
	installed
	download
	ask

	status=0
	umask "$mask"
	"$tmp/kokoa-agent" install --control "$url" "$@" || status=$?
	[ $status -ne 126 ] || die "programs must not run in $tmp; set TMPDIR to a folder where they may"
	exit $status
}

# arguments finds those that concern this script too.
arguments() {
	while [ $# -gt 0 ]; do
		case $1 in
		-token | --token | -token=* | --token=* | kokoa_*)
			die "a token among the arguments can be seen by every user of this host; put it into KOKOA_TOKEN or a file (--token-file FILE), and revoke this one" ;;
		-token-file* | --token-file* | -forge* | --forge* | -h | -help | --help) token=elsewhere ;;
		-ca=* | --ca=*) ca=${1#*=} ;;
		-ca | --ca) ca=${2:-} ;;
		-prefix=* | --prefix=*) prefix=${1#*=}/usr/local ;;
		-prefix | --prefix) prefix=${2:-}/usr/local ;;
		esac
		shift
	done
}

# platform sets os and arch as the names of downloads have them.
platform() {
	case $(uname -s) in
	Linux) os=linux ;;
	Darwin) os=darwin ;;
	*) die "there is no kokoa-agent for $(uname -s), only for Linux and macOS" ;;
	esac
	case $(uname -m) in
	x86_64 | amd64) arch=amd64 ;;
	aarch64 | arm64) arch=arm64 ;;
	armv7* | armv8*) arch=armv7 ;;
	arm*) die "there is no kokoa-agent for $(uname -m): it needs ARMv7 or newer" ;;
	*) die "there is no kokoa-agent for $(uname -m)" ;;
	esac
}

# installed refuses to replace a kokoa-agent by an older one. It lives where "kokoa-agent
# install" puts it.
installed() {
	if [ -z "$prefix" ]; then
		if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=$HOME/.local; fi
	fi
	old=$("$prefix/bin/kokoa-agent" version 2>/dev/null </dev/null | awk '{ print $2 }') || :
	[ -n "$old" ] && older "$version" "${old#v}" || return 0
	die "kokoa-agent $old is installed, and $version is older; to go back, uninstall that first"
}

# older A B: A comes before B, as https://semver.org section 11 orders versions. What is
# none, like "(devel)", comes before all.
older() {
	awk -v a="$1" -v b="$2" '
	function key(v,  n, i, part, k) {
		sub(/\+.*/, "", v)
		if (v !~ /^[0-9]+\.[0-9]+\.[0-9]+(-|$)/) return ""
		if (!sub(/-/, ".", v)) v = v ".~"
		n = split(v, part, ".")
		for (i = 1; i <= n; i++)
			k = k (part[i] ~ /^[0-9]+$/ ? sprintf(" 0%03d%s", length(part[i]), part[i]) : " 1" part[i])
		return k
	}
	BEGIN { exit !(key(a) < key(b)) }'
}

# download gets the program; what broke off goes on where it was.
download() {
	say="Downloading kokoa-agent $version ($os/$arch)"
	[ ! -t 1 ] || printf '  %s\r' "$say"
	program=kokoa-agent-$os-$arch
	: >"$tmp/$program"
	for wait in 0 1 2 4 8; do
		[ $(($(wc -c <"$tmp/$program"))) -lt "$size" ] || break
		sleep $wait
		get "agent/$program" "$size"
	done
	[ "$(openssl dgst -sha256 <"$tmp/$program" | sed 's/.* //')" = "$sum" ] ||
		die "what came is not the kokoa-agent that the control plane signed; try again, and do not go on if this stays"
	mv "$tmp/$program" "$tmp/kokoa-agent"
	chmod 700 "$tmp/kokoa-agent"
	printf '✓ %s\n' "$say"
}

# get FILE SIZE gets a file, or the rest of it, and gives up when it is far larger than
# SIZE bytes. Who calls checks what came.
get() {
	(
		trap '' XFSZ
		ulimit -f $(($2 / 512 + 1))
		if has curl; then
			curl -fsS --proto "=$scheme" --tlsv1.2 ${ca:+--cacert "$ca"} --connect-timeout 20 \
				--speed-limit 1 --speed-time 60 -C - -o "$tmp/${1##*/}" "$url/join/$1"
		else
			wget -q ${ca:+--ca-certificate="$ca"} -c -O "$tmp/${1##*/}" "$url/join/$1"
		fi
	) || :
}

# ask finds the token: the agent cannot, when this script is its standard input. A host
# that has an agent already needs none.
ask() {
	[ -z "$token$old" ] || return 0
	[ -t 0 ] || IFS= read -r token || :
	if [ -z "$token" ] && (stty -g </dev/tty) >/dev/null 2>&1; then
		asking=yes
		stty -echo </dev/tty
		printf 'Join token (it will not show): ' >/dev/tty
		IFS= read -r token </dev/tty || :
		stty echo </dev/tty
		asking=''
		printf '\n' >/dev/tty
	fi
	[ -z "$token" ] || export KOKOA_TOKEN="$token"
}

has() { command -v "$1" >/dev/null 2>&1; }

die() {
	printf 'kokoa: %s\n' "$1" >&2
	exit 1
}

main "$@"
}
