#!/bin/sh
# What the pod of install.yaml runs: installs on the host, waits, and removes what it installed when the pod is deleted for good.
#
# A pod that is only replaced (an upgrade, a drain) must not take the runtime away under running pods. `uninstall` refuses as long as there
# are any, and an installation that follows finds everything in place.
set -u
here=$(dirname "$0")
host=${HOST_ROOT:-/host}

# The options are words.
# shellcheck disable=SC2086
"$here/install.sh" install --root "$host" --from "$here" ${CORACLE_INSTALL_OPTIONS:-} || exit 1
touch /tmp/installed
trap '"$here/install.sh" uninstall --root "$host" ${CORACLE_INSTALL_OPTIONS:-}; exit 0' TERM INT
while :; do
	sleep 3600 &
	wait $!
done
