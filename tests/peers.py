"""The far ends of the namespace tests, each a process: `serve` answers HTTP and UDP, the other commands are clients."""

import hashlib
import http.client
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATTERN = bytes(range(251)) * 4096  # a prime period, so that no shifted block looks right
TIMEOUT = 8


def body(size):
    """Yield `size` bytes in parts."""
    while size > 0:
        part = PATTERN[: min(size, len(PATTERN))]
        yield part
        size -= len(part)


def digest(size):
    return hashlib.sha256(b"".join(body(size))).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for part in body(size):
            self.wfile.write(part)

    def do_POST(self):
        left, got = int(self.headers["Content-Length"]), hashlib.sha256()
        while left > 0:
            part = self.rfile.read(min(left, 65_536))
            if not part:
                return
            got.update(part)
            left -= len(part)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(got.hexdigest().encode())

    def log_message(self, *_arguments):
        """Say nothing."""


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def echo(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        while True:
            data, peer = sock.recvfrom(65_536)
            sock.sendto(data, peer)


def serve(port, *hosts):
    for host in hosts:
        server = type("Server", (ThreadingHTTPServer,), {"address_family": family(host)})((host, int(port)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=echo, args=(host, int(port)), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def download(host, port, size):
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    connection.request("GET", f"/{size}")
    got = hashlib.sha256()
    answer = connection.getresponse()
    while part := answer.read(65_536):
        got.update(part)
    print(json.dumps(got.hexdigest()))


def upload(host, port, size):
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    connection.request("POST", "/", body=body(int(size)), headers={"Content-Length": size})
    print(json.dumps(connection.getresponse().read().decode()))


def udp(host, port, *sizes):
    """Send each size up to four times, as UDP may lose; print the sizes that came back whole."""
    came = []
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((host, int(port)))
        for size in map(int, sizes):
            data = PATTERN[:size]
            for _ in range(4):
                sock.send(data)
                try:
                    back = sock.recv(65_536)
                except TimeoutError:
                    continue
                if back == data:
                    came.append(size)
                    break
    print(json.dumps(came))


def connect(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT).close()
        print(json.dumps("connected"))
    except OSError as error:
        print(json.dumps(type(error).__name__))


def main():
    command, *arguments = sys.argv[1:]
    commands = {"serve": serve, "download": download, "upload": upload, "udp": udp, "connect": connect}
    commands[command](*arguments)


if __name__ == "__main__":
    main()
