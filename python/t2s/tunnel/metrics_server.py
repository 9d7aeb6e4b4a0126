"""The HTTP server that Prometheus scrapes: `/metrics` and nothing else, on one address.

It promises that a client which says nothing, or reads nothing, is let go after `CLIENT_TIMEOUT_S`, that no more than
`CLIENTS` are served at once, and that `stop` leaves no thread and no socket. It asks for no password: whoever reaches
the address reads what it has, which are counters and the device's name, no addresses.
"""

from __future__ import annotations

import socket
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector

from t2s._core import TunnelError
from t2s.metrics import register

if TYPE_CHECKING:
    from t2s.tunnel.api import Tunnel

CLIENT_TIMEOUT_S = 5
"""Time that a client may take for a step, seconds: above a retransmission, below a usual scrape's timeout of 10."""
CLIENTS = 8
"""Clients at once: a few scrapers, each with a connection that lingers."""


class MetricsServer:
    """Serves the metrics of some tunnels, and of this process, until `stop` or the end of its `with` block.

    Raises `TunnelError` when it cannot listen.
    """

    def __init__(self, host: str, port: int, *tunnels: Tunnel) -> None:
        registry = CollectorRegistry()
        register(*tunnels, registry=registry)
        ProcessCollector(registry=registry)
        try:
            self._server = _Server(host, port, registry)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TunnelError(f"cannot serve metrics at {shown(host, port)}: {reason}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="t2s-metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where to scrape."""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://{shown(host, port)}/metrics"

    def stop(self) -> None:
        """Stop listening; clients that are being served may finish."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        """Return itself; it serves already."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop."""
        self.stop()


def shown(host: str, port: int) -> str:
    """Write an address as URLs do.

    >>> shown("::1", 9100)
    '[::1]:9100'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Handler(MetricsHandler):
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:  # noqa: N802 - the standard server's name
        if self.path.partition("?")[0] == "/metrics":
            super().do_GET()
        else:
            self.send_error(404, "see /metrics")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((host, port), _Handler.factory(registry))

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the address that the standard server does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Say nothing: a scraper that went away is not this tunnel's trouble."""
