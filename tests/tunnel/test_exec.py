"""`t2s exec`: one command behind a tunnel, as root and as a user without any rights.

The first part needs nothing; the second runs in two network namespaces of its own and needs root to make them.
"""

import errno
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import netns
import peers
from netns import OTHERS, PEERS, PORT, PROXY, T2S, TARGETS, watching
from t2s import ConfigError, TunnelConfig
from t2s.tunnel import namespace
from t2s.tunnel.execute import DNS_SERVER, check_server, dns_mode

CLIENT, SERVER = f"t2s-xc-{os.getpid()}", f"t2s-xs-{os.getpid()}"
NOBODY = "65534"


def test_the_resolver_is_an_address():
    assert (check_server(None), check_server("2001:db8::53")) == (DNS_SERVER, "2001:db8::53")
    with pytest.raises(ConfigError, match=r"dns_server: 'dns\.example'"):
        check_server("dns.example")


@pytest.mark.parametrize(("name", "bad", "good"), namespace.SWITCHES)
def test_the_switch_to_change_is_named(tmp_path, name, bad, good):
    path = tmp_path / "sys" / name.replace(".", "/")
    path.parent.mkdir(parents=True)
    path.write_text(f"{bad}\n", encoding="ascii")
    assert f"sysctl -w {name}={good}" in namespace.forbidden(OSError(errno.EPERM, "no"), tmp_path)
    path.write_text(f"{good}\n", encoding="ascii")
    assert "seccomp" in namespace.forbidden(OSError(errno.EPERM, "no"), tmp_path)


@pytest.mark.parametrize(
    ("code", "told"), [(errno.ENOENT, "modprobe tun"), (errno.EACCES, "chmod 0666"), (errno.EPERM, "--device")]
)
def test_what_keeps_the_device_away_is_named(code, told):
    assert told in namespace.unusable(OSError(code, "no"))


# The second part: in namespaces.


# A private view of the machine for the user nobody: a TUN device file with the given mode, and the interpreter, which
# may lie in a folder that only root enters.
NOBODYS_VIEW = """
set -eu
mode=$1 base=$2; shift 2
mount --make-rprivate /
room=$(mktemp -d); mount -t tmpfs tmpfs "$room"; mkdir "$room/base"
mknod "$room/tun" c 10 200; chmod "$mode" "$room/tun"; mount --bind "$room/tun" /dev/net/tun
mount --bind "$base" "$room/base"
at=$base
while [ "$at" != / ]; do
    at=$(dirname "$at")
    case $(stat -c %A "$at") in
        *x) ;;
        *) mount -t tmpfs -o mode=755 tmpfs "$at"; mkdir -p "$base"; mount --bind "$room/base" "$base" ;;
    esac
done
cd /
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/tmp "$@"
"""


def prefix(who, mode="666"):
    """Return the words that run a command in the client's namespace as root or as nobody."""
    words = ["ip", "netns", "exec", CLIENT]
    if who == "container":
        words += ["setpriv", "--bounding-set", "-sys_admin"]  # root, but not of namespaces
    if who == "nobody":
        words += ["unshare", "--mount", "sh", "-c", NOBODYS_VIEW, "view", mode, sys.base_prefix]
    return words


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    for tool in ("setpriv", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs the command `{tool}` (util-linux)")
    with netns.world(CLIENT, SERVER, tmp_path_factory.mktemp("exec")) as folder:
        yield folder
        # Nothing of the commands' namespaces is left: no process lives in one, no room of the views.
        assert not list(Path(tempfile.gettempdir()).glob("t2s-resolv-*"))
        for room in Path("/tmp").glob("t2s-view-*"):
            room.rmdir()


FLAGS = ["--proxy", f"socks5://{PROXY}", "--dns-server", TARGETS["v4"]]
ENV = {**os.environ, "T2S_USERNAME": "alice", "T2S_PASSWORD": "open sesame"}


def execute(who, *command, mode="666", flags=FLAGS):
    full = [*prefix(who, mode), *T2S, "exec", *flags, "--", *map(str, command)]
    return subprocess.run(full, capture_output=True, text=True, check=False, timeout=60, env=ENV)


def told(who, *command):
    done = execute(who, *command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"proxy": "socks5://h"}, "fake-ip"),
        ({"proxy": "http://h"}, "fake-ip"),
        ({"proxy": "direct://"}, "over-tcp"),
        ({"proxy": "socks5://h", "dns_server": "192.0.2.53"}, "over-tcp"),
    ],
)
def test_names_are_the_proxys_to_resolve_unless_something_else_is_said(settings, mode):
    assert dns_mode(TunnelConfig(**settings)) == mode


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
@pytest.mark.parametrize("who", ["root", "container", "nobody"])
class TestExec:
    def test_traffic_goes_through_the_tunnel(self, world, who):
        with watching(SERVER, "wire", world / "wire.log") as outside:
            for target in TARGETS.values():
                assert told(who, *PEERS, "download", target, PORT, 300_000) == peers.digest(300_000)
                assert told(who, *PEERS, "udp", target, PORT, 1, 1_400) == [1, 1_400]
            assert told(who, *PEERS, "connect", TARGETS["v4"], "9") == "ConnectionRefusedError"
            netns.until(lambda: netns.SERVER_END in outside(), "not outside", world / "wire.log")
            assert not outside() & set(TARGETS.values())

    def test_names_are_resolved_through_it(self, who, world):
        code = "import json, socket; print(json.dumps(socket.gethostbyname('name.example')))"
        with watching(SERVER, "wire", world / "wire.log") as outside:
            assert told(who, sys.executable, "-c", code) == OTHERS["v4"]
            assert TARGETS["v4"] not in outside()

    def test_the_tunnel_makes_addresses_up_where_no_resolver_is_named(self, who, world):
        code = "import json, socket; print(json.dumps(socket.gethostbyname('name.example')))"
        done = execute(who, sys.executable, "-c", code, flags=FLAGS[:2])
        assert done.returncode == 0, done.stderr
        assert ipaddress.ip_address(json.loads(done.stdout)) in ipaddress.ip_network(
            TunnelConfig.defaults()["fake_ip_v4"]
        )
        assert world.exists()

    def test_there_is_no_other_way_out(self, who, world):
        code = "import json, socket; print(json.dumps([name for _, name in socket.if_nameindex()]))"
        loopback, device = told(who, sys.executable, "-c", code)
        assert (loopback, device[:3]) == ("lo", "t2s")
        # The client's own address is one like any other, and the proxy does not reach it.
        assert told(who, *PEERS, "connect", netns.CLIENT_END, PORT) != "connected"
        assert world.exists()

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (["true"], 0),
            (["sh", "-c", "exit 42"], 42),
            (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
            (["no-such-command"], 127),
            (["/etc"], 126),
        ],
    )
    def test_the_exit_code_is_the_commands(self, who, world, command, code):
        assert execute(who, *command).returncode == code
        assert world.exists()

    def test_the_command_is_the_caller(self, who, world):
        code = "import json, os; print(json.dumps([os.getuid(), os.getgid()]))"
        wanted = [int(NOBODY)] * 2 if who == "nobody" else [0, 0]
        assert told(who, sys.executable, "-c", code) == wanted
        if who == "nobody":
            done = execute(who, "grep", "CapEff", "/proc/self/status")
            assert done.stdout.split() == ["CapEff:", "0" * 16]
        assert world.exists()

    def test_signals_and_input_reach_the_command(self, who, world):
        script = "trap 'echo got it; exit 9' TERM; read line; echo $line; while :; do sleep 0.05; done"
        with self.started(who, "sh", "-c", script) as child:
            child.stdin.write("hello\n")
            child.stdin.flush()
            assert child.stdout.readline() == "hello\n"
            child.send_signal(signal.SIGTERM)
            assert child.stdout.readline() == "got it\n"
            assert child.wait(10) == 9
        assert world.exists()

    @contextmanager
    def started(self, who, *command):
        full = [*prefix(who), *T2S, "exec", *FLAGS, "--", *command]
        with subprocess.Popen(full, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV) as child:
            try:
                yield child
            finally:
                child.kill()

    def test_a_killed_tunnel_leaves_its_command_no_way_out(self, who, world):
        script = "echo $$; read line; cd /proc/$$/root && ls sys >/dev/null; ip route"
        with self.started(who, "sh", "-c", script) as child:
            command = int(child.stdout.readline())
            child.kill()
            child.wait(5)
            listing = Path(f"/proc/{command}/net/dev")
            end = time.monotonic() + 5
            while "t2s" in listing.read_text(encoding="ascii"):
                assert time.monotonic() < end, "the device outlives the tunnel"
                time.sleep(0.02)
            os.kill(command, signal.SIGKILL)
        assert world.exists()

    def test_bad_input_runs_nothing(self, who, world):
        for flags in (
            ["--proxy", "gopher://x"],
            [*FLAGS, "--mtu", "100"],
            [*FLAGS, "--mtu", "70000"],
            [*FLAGS[:2], "--dns-server", "x"],
        ):
            done = execute(who, "echo", "it ran", flags=flags)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert world.exists()


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
def test_a_device_file_that_is_closed_is_named(world):
    done = execute("nobody", "true", mode="600")
    assert (done.returncode, done.stdout) == (125, "")
    assert "chmod 0666 /dev/net/tun" in done.stderr
    assert world.exists()


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
def test_a_closed_standard_error_changes_no_exit_code(world):
    words = [*prefix("root"), "sh", "-c", 'exec "$@" 2>&-', "sh", *T2S, "exec", *FLAGS, "--", "no-such-command"]
    assert subprocess.run(words, check=False, timeout=60, env=ENV, stdout=subprocess.DEVNULL).returncode == 127
    assert world.exists()


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
def test_a_device_of_another_namespace_is_not_taken_for_one_of_that_name_here(world):
    here = """
import json, subprocess, sys
from t2s import Tunnel, open_tun
theirs = int(sys.argv[1])
subprocess.run(["ip", "tuntap", "add", "t2sx", "mode", "tun", "pi"], check=True, timeout=10)
Tunnel("direct://", tun_fd=theirs).stop(0)  # though the one here has packet information
subprocess.run(["ip", "tuntap", "delete", "t2sx", "mode", "tun"], check=True, timeout=10)
ours, _, _ = open_tun("t2sx", mtu=1400)
def mtu():
    with open("/sys/class/net/t2sx/mtu") as file:
        return int(file.read())
told = []
for fd, wanted in ((theirs, None), (theirs, 8000), (ours, None), (ours, 2000)):
    with Tunnel("direct://", tun_fd=fd, mtu=wanted) as tunnel:
        told.append([tunnel.mtu, mtu()])
print(json.dumps(told))
"""
    there = f"""
import os, sys
from t2s import open_tun
fd, _, _ = open_tun("t2sx", mtu=9000)
os.set_inheritable(fd, True)
os.execvp("ip", ["ip", "netns", "exec", {SERVER!r}, sys.executable, "-c", {here!r}, str(fd)])
"""
    full = [*prefix("root"), sys.executable, "-c", there]
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1_500, 1_400], [8_000, 1_400], [1_400, 1_400], [2_000, 2_000]]
    assert world.exists()


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
def test_offload_that_the_opener_of_a_device_asked_for_can_be_switched_off(world):
    code = """
import json, subprocess, sys
from t2s import Tunnel, open_tun
fd, name, mtu = open_tun("t2sy")
for words in (["address", "add", "10.9.9.1/32", "dev", name], ["route", "add", sys.argv[1], "dev", name]):
    subprocess.run(["ip", *words], check=True, timeout=10)
with Tunnel("direct://", tun_fd=fd, offload="off", fwmark=1) as tunnel:
    subprocess.run([sys.executable, *sys.argv[2:]], check=True, stdout=subprocess.DEVNULL, timeout=30)
    print(json.dumps([mtu, tunnel.stats()["packets_in"]]))
"""
    target = TARGETS["v4"]
    ip = ["-n", CLIENT, "rule"]
    full = [*prefix("root"), sys.executable, "-c", code, target, *PEERS[1:], "upload", target, PORT, "3000000"]
    netns.ip(*ip, "add", "fwmark", "1", "table", "99", "priority", "5")
    try:
        netns.ip("-n", CLIENT, "route", "add", "default", "via", netns.SERVER_END, "table", "99")
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=60)
    finally:
        netns.ip(*ip, "del", "fwmark", "1", "table", "99", "priority", "5")
    assert done.returncode == 0, done.stderr
    mtu, packets = json.loads(done.stdout)
    assert packets > 3_000_000 // mtu, "super-segments"
    assert world.exists()


@pytest.mark.root
@pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))
def test_nothing_is_left_in_the_process(world):
    """Three commands one after the other in one process: no thread, descriptor or child left."""
    code = f"""
import os, time
from t2s import TunnelConfig
from t2s.tunnel.execute import Command, run
def count():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
config = TunnelConfig(proxy="socks5://{PROXY}", username="alice", password="open sesame", log_level="warn")
before = None
for _ in range(3):
    assert run(Command(argv=["true"], dns_server="{TARGETS["v4"]}"), config, lambda lines: None) == 0
    for _ in range(50):  # a joined thread stands in /proc for a moment longer
        if count() == before:
            break
        time.sleep(0.01)
    before = before or count()
    assert count() == before, (count(), before)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("[]")
"""
    full = [*prefix("root"), sys.executable, "-c", code]
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert world.exists()
