"""Two network namespaces for tests: a client whose default route leads to a server, which has the rest of the world.

As a program it is what they need beside `peers`: `watch` writes where packets on an interface go, `resolver` answers
each DNS query over TCP with one address, `incoming` keeps a connection that came in and answers on it.
"""

import ipaddress
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import peers

TARGETS = {"v4": "198.51.100.1", "v6": "2001:db8:5::1"}
OTHERS = {"v4": "203.0.113.1", "v6": "2001:db8:6::1"}
CLIENT_END, SERVER_END = "10.203.0.1", "10.203.0.2"
CLIENT_END6, SERVER_END6 = "fd00:203::1", "fd00:203::2"
PROXY = f"{SERVER_END}:1080"
PORT = "8000"
STARTED_S = 15
T2S = [sys.executable, "-c", "from t2s.cli import main; main()"]
PEERS = [sys.executable, str(Path(peers.__file__))]
HELPERS = [sys.executable, str(Path(__file__))]


def missing():
    """Return what keeps namespaces from being made here."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    if shutil.which("ip") is None:
        return "needs the command `ip` (iproute2)"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@contextmanager
def process(namespace, command, log, env=None, spoken=True, **settings):
    """Run a command in a namespace, its errors in a log, with what it says if `spoken`; at the end it is gone."""
    environ = {key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"} | (env or {})
    with log.open("w", encoding="utf-8") as out:
        full = ["ip", "netns", "exec", namespace, *command]
        child = subprocess.Popen(
            full, stdout=out if spoken else subprocess.DEVNULL, stderr=out, env=environ, **settings
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(5)


def until(condition, what, log=None):
    """Wait until something holds; fail with the log when it does not."""
    end = time.monotonic() + STARTED_S
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what}: {log.read_text(encoding='utf-8') if log else ''}")


def says(log, sign):
    return lambda: sign in log.read_text(encoding="utf-8")


@contextmanager
def world(client, server, folder):
    """Make both namespaces with the proxy, the servers and a resolver."""
    with ExitStack() as stack:
        for name in (client, server):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", client, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", server)
        for name, ends in ((client, (CLIENT_END, CLIENT_END6)), (server, (SERVER_END, SERVER_END6))):
            ip("-n", name, "address", "add", f"{ends[0]}/24", "dev", "wire")
            ip("-n", name, "address", "add", f"{ends[1]}/64", "dev", "wire", "nodad")
            ip("-n", name, "link", "set", "wire", "up")
        for address in (*TARGETS.values(), *OTHERS.values()):
            ip("-n", server, "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        ip("-n", client, "route", "add", "default", "via", SERVER_END)
        ip("-n", client, "-6", "route", "add", "default", "via", SERVER_END6)
        commands = {
            "serve": ([*PEERS, "serve", PORT, *TARGETS.values(), *OTHERS.values()], "ready"),
            "proxy": ([*T2S, "proxy", "--listen", PROXY, "--user", "alice"], "listening at"),
            "resolver": ([*HELPERS, "resolver", TARGETS["v4"], OTHERS["v4"]], "ready"),
        }
        for name, (command, sign) in commands.items():
            log = folder / f"{name}.log"
            stack.enter_context(process(server, command, log, {"T2S_PROXY_PASSWORD": "open sesame"}))
            until(says(log, sign), f"{name} did not start", log)
        yield folder


@contextmanager
def watching(namespace, interface, log):
    """Note where packets on an interface go, until the block ends; the log then has an address a line."""
    with process(namespace, [*HELPERS, "watch", interface], log):
        until(says(log, "ready"), "no watch", log)
        yield lambda: set(log.read_text(encoding="utf-8").split())


def watch(interface):
    seen = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(3)) as sock:  # all protocols
        sock.bind((interface, 3))
        print("ready", flush=True)
        while True:
            packet = sock.recv(100)
            version = packet[0] >> 4
            target = ipaddress.ip_address(packet[16:20] if version == 4 else packet[24:40])
            if version in {4, 6} and target not in seen:
                seen.add(target)
                print(target, flush=True)


def resolver(host, answer):
    """Answer each A query over TCP with one address, any other with none."""

    def serve(connection):
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(2)) == 2:
                query = stream.read(int.from_bytes(head, "big"))
                end = query.index(b"\0", 12) + 5
                wanted = query[end - 4 : end - 2] == b"\0\1"
                text = query[:2] + struct.pack(">HHHHH", 0x8180, 1, int(wanted), 0, 0) + query[12:end]
                if wanted:
                    text += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + ipaddress.ip_address(answer).packed
                connection.sendall(len(text).to_bytes(2, "big") + text)

    with socket.create_server((host, 53)) as server:
        print("ready", flush=True)
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


def incoming(name, port):
    """Be a server of that process name which echoes on the connections that come in."""
    Path("/proc/self/comm").write_text(name, encoding="ascii")
    with socket.create_server(("0.0.0.0", int(port))) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        with connection:
            print("accepted", flush=True)
            while data := connection.recv(100):
                connection.sendall(data)


def operate(source, host, port):
    """Be at the far end of such a connection: send each line that comes in, and print what comes back."""
    with socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0)) as sock:
        print("ready", flush=True)
        for line in sys.stdin:
            sock.sendall(line.encode())
            print(sock.recv(100).decode(), end="", flush=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"watch": watch, "resolver": resolver, "incoming": incoming, "operate": operate}[command](*arguments)
