#!/bin/sh
# Installs what the tunnel's tests use as peers, where this is root on a machine with apt: proxies that are not ours, and
# tools. It never fails: what cannot be had is named, and the tests that want it skip with the reason.
set -u

missing=
for pair in danted:dante-server microsocks:microsocks iperf3:iperf3 curl:curl dig:dnsutils nft:nftables ip:iproute2; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests that need these Debian packages skip:$missing"
    exit 0
fi

# Packages start their services when they are installed, unless this file says no. Ours is gone afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 0' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi

echo "installing for the tests:$missing"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
bounded="timeout 300"
$bounded apt-get -qq -o Acquire::Retries=2 update >"$log" 2>&1 || true
# One by one when all at once does not go, so that one missing package costs its own tests alone.
# shellcheck disable=SC2086
if ! $bounded apt-get -qq install -y --no-install-recommends $missing >>"$log" 2>&1; then
    for package in $missing; do
        $bounded apt-get -qq install -y --no-install-recommends "$package" >>"$log" 2>&1 ||
            echo "cannot install $package; tests that need it skip"
    done
    grep -m 3 '^E:' "$log" || true
fi
rm -f "$log"
exit 0
