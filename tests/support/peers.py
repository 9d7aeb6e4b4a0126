"""The far ends of the namespace tests, each a process: `serve` answers HTTP and UDP, the other commands are clients.

`talk` and its clients, which speak of half-closes and crowds, are in `talk`. Each command prints what it saw as JSON.
"""

import errno
import hashlib
import http.client
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import talk

PATTERN = bytes(range(251)) * 4096  # a prime period, so that no shifted block looks right
CHUNK = 1 << 20
TIMEOUT = 20


def body(size):
    """Yield `size` bytes in parts."""
    whole = memoryview(PATTERN)
    while size > 0:
        part = whole[: min(size, len(whole))]
        yield part
        size -= len(part)


def digest(size):
    got = hashlib.sha256()
    for part in body(size):
        got.update(part)
    return got.hexdigest()


def taken(source, size):
    """Read `size` bytes, or to the end, and return their digest."""
    room, got = memoryview(bytearray(CHUNK)), hashlib.sha256()
    while size > 0 and (count := source.readinto(room[: min(size, CHUNK)])):
        got.update(room[:count])
        size -= count
    return got.hexdigest()


class Handler(BaseHTTPRequestHandler):
    rbufsize = CHUNK

    def do_GET(self):
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for part in body(size):
            self.wfile.write(part)

    def do_POST(self):
        got = taken(self.rfile, int(self.headers["Content-Length"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(got)))
        self.end_headers()
        self.wfile.write(got)

    def log_message(self, *_arguments):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_arguments):
        """Say nothing: clients that break off are what some tests are about."""


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def echo(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, port))
        while True:
            data, peer = sock.recvfrom(65_536)
            sock.sendto(data, peer)


def serve(port, *hosts):
    for host in hosts:
        server = type("Server", (Server,), {"address_family": family(host)})((host, int(port)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=echo, args=(host, int(port)), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def download(host, port, size):
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    connection.request("GET", f"/{size}")
    print(json.dumps(taken(connection.getresponse(), int(size))))


def upload(host, port, size):
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    connection.request("POST", "/", body=body(int(size)), headers={"Content-Length": size})
    print(json.dumps(connection.getresponse().read().decode()))


def udp(host, port, *sizes):
    """Send each size up to 20 times, as UDP may lose; print the sizes that came back whole."""
    came = []
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((host, int(port)))
        for size in map(int, sizes):
            data = PATTERN[:size]
            for _ in range(20):
                try:
                    sock.send(data)
                    back = sock.recv(65_536)
                except (TimeoutError, PermissionError):
                    # Lost on the way, or (what nftables tells a sender) right here.
                    continue
                if back == data:
                    came.append(size)
                    break
    print(json.dumps(came))


def refused_udp(host, port):
    """Send datagrams until the network says that nobody takes them; print the error, or null when none comes."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((host, int(port)))
        for _ in range(10):
            try:
                sock.send(b"x")
                sock.recv(10)
            except TimeoutError:
                continue
            except OSError as error:
                return print(json.dumps(type(error).__name__))
    return print("null")


def connect(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT).close()
        print(json.dumps("connected"))
    except OSError as error:
        print(json.dumps(type(error).__name__))


def reach(host, port, timeout=TIMEOUT):
    """Connect; print that it went, the name of the error's number, or that of the error when it has none."""
    try:
        socket.create_connection((host, int(port)), timeout=float(timeout)).close()
        print(json.dumps("connected"))
    except OSError as error:
        print(json.dumps(type(error).__name__ if error.errno is None else errno.errorcode[error.errno]))


def main():
    command, *arguments = sys.argv[1:]
    own = [serve, download, upload, udp, refused_udp, connect, reach]
    commands = {function.__name__: function for function in own} | talk.COMMANDS
    commands[command](*arguments)


if __name__ == "__main__":
    main()
