"""A SOCKS5 server that is proxy and target in one, so that a tunnel can be tested without a network behind it.

CONNECT to port 9000 + n is answered with reply code n; to any other port it succeeds, and what comes is sent back. UDP
ASSOCIATE is answered with 07.
"""

import contextlib
import socket
import socketserver
import threading

CODES = 9000


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            self.request.settimeout(20)
            self.serve(self.request.makefile("rb"))

    def serve(self, stream):
        _, count = stream.read(2)
        stream.read(count)
        self.request.sendall(b"\x05\x00")
        _, command, _, kind = stream.read(4)
        stream.read({1: 4, 4: 16}[kind])
        port = int.from_bytes(stream.read(2), "big")
        code = 7 if command == 3 else max(0, port - CODES) if port < CODES + 256 else 0
        self.request.sendall(bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0)))
        while code == 0 and (part := stream.read1(65_536)):
            self.request.sendall(part)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_arguments):
        """Say nothing: probes end in the middle of a request."""


@contextlib.contextmanager
def socks(host="127.0.0.1"):
    """Serve on a free port; yield the address as a proxy URL."""
    with _Server((host, 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"socks5://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def device():
    """Return both ends of what serves as a device without rights: a packet a message."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
