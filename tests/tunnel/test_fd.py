"""`t2s run --tun-fd`: the device was opened by somebody else, as Android's VpnService does, and stays theirs.

One namespace: the device, a SOCKS5 server on loopback that sends back what it gets, and the tunnel between them.
"""

import os
import signal
import subprocess
import sys

import pytest

import socks
from netns import T2S, missing
from rooms import room

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

# Runs in the namespace: opens the device with the flags given, hands it to the command, speaks through it.
OWNER = """
import fcntl, hashlib, os, signal, socket, struct, subprocess, sys, threading, time
sys.path.insert(0, {tests!r})
from socks import socks
flags, wanted = int(sys.argv[1]), sys.argv[2]
TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"theirs", flags))
for line in ("link set theirs up", "address add 10.205.0.1/24 dev theirs", "route add 192.0.2.0/24 dev theirs"):
    subprocess.run(["ip", *line.split()], check=True)
with socks() as proxy:
    command = [*{t2s!r}, "run", "--proxy", proxy, "--tun-fd", str(fd), "--log-level", "info"]
    child = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.PIPE, text=True)
    try:
        first = child.stderr.readline()
        if wanted == "refused":
            print(first + child.stderr.read(), end="")
            sys.exit(child.wait(10))
        sent = os.urandom(2_000_000)
        for _ in range(2):  # the second connection shows that the first one's end ended nothing else
            got = bytearray()
            with socket.create_connection(("192.0.2.7", 80), timeout=10) as connection:
                def send():
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                sender = threading.Thread(target=send)
                sender.start()
                while part := connection.recv(65_536):
                    got += part
                sender.join(10)
            assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
        try:
            socket.create_connection(("192.0.2.7", 9005), timeout=10).close()
            raise SystemExit("reply 05 did not refuse")
        except ConnectionRefusedError:
            pass
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0, child.stderr.read()
        print(first, end="")
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
# Theirs still: open, attached, and the interface is there.
name, kept = struct.unpack("16sH22x", fcntl.ioctl(fd, TUNGETIFF, bytes(40)))
assert (name.rstrip(b"\\0"), kept & 0xFF) == (b"theirs", flags & 0xFF), (name, kept)
subprocess.run(["ip", "link", "show", "theirs"], check=True, stdout=subprocess.DEVNULL)
os.close(fd)
assert subprocess.run(["ip", "link", "show", "theirs"], capture_output=True).returncode != 0
"""
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000


def owner(flags, wanted):
    """Run the owner of a device; return its exit code and what the tunnel said first."""
    script = OWNER.format(tests=os.path.dirname(socks.__file__), t2s=T2S)  # noqa: PTH120 - a string for another process
    with room() as world:
        command = ["ip", "netns", "exec", world.name, sys.executable, "-c", script, str(flags), wanted]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as child:
            try:
                out, errors = child.communicate(timeout=40)
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                raise
    return child.returncode, out, errors


@pytest.mark.parametrize(
    ("header", "told"),
    [(0, "tso false, uso false"), (IFF_VNET_HDR, "tso true")],
    ids=["plain", "offload"],
)
def test_traffic_flows_and_the_descriptor_stays_its_owners(header, told):
    code, out, errors = owner(IFF_TUN | IFF_NO_PI | header, "traffic")
    assert code == 0, errors
    assert out.startswith("info: theirs: mtu 1500, 1 queue(s)")
    assert told in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (IFF_TAP | IFF_NO_PI, "is not a usable TUN device: it is a TAP device, which carries Ethernet frames"),
        (IFF_TUN, "is not a usable TUN device: it was opened without IFF_NO_PI"),
    ],
    ids=["tap", "packet-information"],
)
def test_descriptors_of_other_kinds_are_refused(flags, told):
    code, out, errors = owner(flags, "refused")
    assert code == 1, errors
    assert told in out
