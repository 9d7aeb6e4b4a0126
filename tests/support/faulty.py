"""A SOCKS5 server with faults, each at a port of its own or asked for by the target's port; a process: HOST PORT.

PORT        faults by the target's port: `REPLIES` and the functions below; anything else is carried
PORT + 1    never answers
PORT + 2    answers as an HTTP server does
PORT + 3    closes at once
PORT + 4    wants a password that nobody has
PORT + 5    like PORT, but carries no UDP
PORT + 6    answers ASSOCIATE with a relay where nobody is
PORT + 7    like PORT, but wants no password
PORT + 8    like that, but hangs up on whoever says nothing for a moment
PORT + 9    like that, but not before something is said after all
"""

import contextlib
import socket
import socketserver
import struct
import sys
import threading
import time

KINDS = ("by_target", "silent", "http", "closes", "password", "no_udp", "dead_relay", "open_to_all", "hasty", "sulky")
MOMENT_S = 0.3
REPLIES = {9_000 + code: code for code in (1, 2, 3, 4, 5, 6, 7, 8, 99)}
HANGS, CLOSES, HALF, GARBAGE, DRIBBLES, CUT, RESETS, STALLS = range(9_200, 9_208)
CUT_AFTER = 300_000
GRANTED = b"\x05\x00\x00\x01" + bytes(6)


def exactly(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("ended early")
        data += part
    return data


def carry(source, sink, limit=None):
    """Carry bytes to the end, or so many; pass the end on."""
    moved = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65_536 if limit is None else min(65_536, limit - moved)):
            sink.sendall(data)
            moved += len(data)
            if moved == limit:
                return
        sink.shutdown(socket.SHUT_WR)


class Client(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(60)
        with contextlib.suppress(OSError):
            getattr(self, self.server.kind)()

    def silent(self):
        while self.request.recv(4_096):
            pass

    def http(self):
        self.request.recv(4_096)
        self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    def closes(self):
        """Close, which is what happens after this."""

    def password(self):
        exactly(self.request, exactly(self.request, 2)[1])
        self.request.sendall(b"\x05\x02")
        self.request.recv(4_096)
        self.request.sendall(b"\x01\x01")

    def no_udp(self):
        self.by_target(b"\x05\x07\x00\x01" + bytes(6))

    def dead_relay(self):
        self.by_target(b"\x05\x00\x00\x01" + socket.inet_aton(self.server.server_address[0]) + b"\x00\x09")

    def open_to_all(self):
        self.by_target(password=False)

    def hasty(self):
        self.by_target(password=False, before=self.within_a_moment)

    def sulky(self):
        self.by_target(password=False, before=self.not_after_a_moment)

    def within_a_moment(self):
        self.request.settimeout(MOMENT_S)
        self.request.recv(1, socket.MSG_PEEK)
        self.request.settimeout(60)

    def not_after_a_moment(self):
        begun = time.monotonic()
        self.request.recv(1, socket.MSG_PEEK)
        if time.monotonic() - begun > MOMENT_S:
            raise ConnectionError("too late")

    def by_target(self, associate=b"\x05\x01\x00\x01" + bytes(6), *, password=True, before=lambda: None):
        before()
        methods = exactly(self.request, exactly(self.request, 2)[1])
        password = password and 2 in methods
        if not password and 0 not in methods:
            self.request.sendall(b"\x05\xff")
            return
        self.request.sendall(b"\x05\x02" if password else b"\x05\x00")
        if password:
            exactly(self.request, exactly(self.request, 2)[1])
            exactly(self.request, exactly(self.request, 1)[0])
            self.request.sendall(b"\x01\x00")
        before()
        _, command, _, kind = exactly(self.request, 4)
        family = socket.AF_INET6 if kind == 4 else socket.AF_INET
        host = socket.inet_ntop(family, exactly(self.request, 16 if kind == 4 else 4))
        port = int.from_bytes(exactly(self.request, 2), "big")
        if command == 3:
            self.request.sendall(associate)
            if associate[1] == 0:
                self.silent()
        elif port in REPLIES:
            self.request.sendall(bytes([5, REPLIES[port]]) + GRANTED[2:])
        else:
            self.connect(host, port)

    def connect(self, host, port):
        if port == HANGS:
            self.silent()
        elif port == HALF:
            self.request.sendall(GRANTED[:6])
        elif port == GARBAGE:
            self.request.sendall(b"\x00" * 300)
        elif port == DRIBBLES:
            for byte in GRANTED + b"drop by drop":
                self.request.sendall(bytes([byte]))
                time.sleep(0.01)
        elif port == STALLS:
            self.request.sendall(GRANTED)
            self.server.ended.wait(60)
        elif port in (CUT, RESETS):
            self.request.sendall(GRANTED)
            for _ in range(CUT_AFTER // 1_000):
                self.request.sendall(bytes(1_000))
            if port == RESETS:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()  # before the server ends it in peace
        elif port != CLOSES:
            with socket.create_connection((host, port), timeout=60) as upstream:
                self.request.sendall(GRANTED)
                back = threading.Thread(target=carry, args=(upstream, self.request), daemon=True)
                back.start()
                carry(self.request, upstream)
                back.join(60)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    ended = threading.Event()
    request_queue_size = 256


def main():
    host, port = sys.argv[1], int(sys.argv[2])
    for offset, kind in enumerate(KINDS):
        server = Server((host, port + offset), Client)
        server.kind = kind
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
