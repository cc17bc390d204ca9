#!/usr/bin/env bash
#
# Builds the images, looks at them and runs them. Without a Docker engine that answers it
# starts one of its own for the time, which takes root and dockerd.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=v1.2.3
limit=20000000 # bytes of the agent's image
failed=0

main() {
	scratch=$(mktemp -d)
	trap finish EXIT
	docker info >/dev/null 2>&1 || engine
	VERSION=$version packaging/image.sh
	local program size
	for program in kokoa kokoa-edge kokoa-agent; do
		size=$(docker image inspect --format '{{.Size}}' "$program:$version")
		echo "$program: $size bytes"
		images+=("$program:$version")
		is "$program runs as" 65532:65532 "$(docker image inspect --format '{{.Config.User}}' "$program:$version")"
		ask=version
		[ "$program" != kokoa ] || ask=--version
		said=$(in_container "$program" $ask) || failed=1
		is "$program says" "$program $version" "${said% go1.*}"
	done
	[ "$size" -le $limit ] || { echo "the agent's image has more than $limit bytes"; failed=1; }

	is "the agent's health check" '[CMD /kokoa-agent health]' \
		"$(docker image inspect --format '{{.Config.Healthcheck.Test}}' "kokoa-agent:$version")"
	if said=$(in_container kokoa-agent health 2>&1); then
		echo "an agent that does not run is healthy: $said"
		failed=1
	fi
	echo "kokoa-agent health: $said"
	# It can write where it keeps its key, and sees the authorities.
	if said=$(docker run --rm --network none --env KOKOA_CONTROL_PLANE=https://127.0.0.1:1 --env KOKOA_ORIGIN_NAME=shop \
		--env KOKOA_TOKEN=none --read-only "kokoa-agent:$version" 2>&1); then
		echo "an agent with a bad token runs: $said"
		failed=1
	fi
	is "an agent with a bad token says" yes "$(grep -q 'not a join token' <<<"$said" && echo yes || echo "$said")"
	return $failed
}

# in_container PROGRAM ARGS... runs a program with no network and a disk it cannot write.
in_container() {
	local program=$1
	shift
	docker run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges "$program:$version" "$@"
}

is() {
	[ "$2" = "$3" ] || { echo "$1 \"$3\", want \"$2\""; failed=1; }
}

# engine starts a Docker engine that leaves the host's network alone.
engine() {
	local log=$scratch/log
	export DOCKER_HOST=unix://$scratch/docker.sock
	dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs --data-root "$scratch/data" \
		--exec-root "$scratch/exec" --pidfile "$scratch/pid" --host "$DOCKER_HOST" >"$log" 2>&1 &
	dockerd=$!
	local waited
	for waited in {1..300}; do
		! docker info >/dev/null 2>&1 || return 0
		kill -0 "$dockerd" 2>/dev/null || break
		sleep 0.1
	done
	echo "no Docker engine after $waited looks:" >&2
	tail -5 "$log" >&2
	exit 1
}

images=()
dockerd=
finish() {
	if [ -n "$dockerd" ]; then
		kill "$dockerd" 2>/dev/null || :
		wait "$dockerd" || :
	elif [ ${#images[@]} -gt 0 ]; then
		docker image rm --force "${images[@]}" >/dev/null || :
	fi
	rm -rf "$scratch"
}

main "$@"
