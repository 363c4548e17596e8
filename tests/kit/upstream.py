"""Another service, as a program of the tests: it hangs, resets, fails, or answers what nobody can use."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kit.service import LOOPBACK

# What an answer has besides, in the modes that have anything.
HEADERS = {
    "later": ("Retry-After", "3600"),
    "loop": ("Location", "/leaf/again?key=canary-query"),
    "compressed": ("Content-Encoding", "gzip"),
}


class Upstream:
    """Answers as *mode* says, and counts what it was asked for by method."""

    def __init__(self) -> None:
        self.mode = "answer"
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()
        self._lock = threading.Lock()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with upstream._lock:
                    upstream.asked[self.command] += 1
                    number = upstream.asked.total()
                upstream.behave(self, number)

            do_GET = do_POST = do_PUT = do_MKCOL = answer

            def log_message(self, format: str, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self.server = Server((LOOPBACK, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server.server_port}"

    def behave(self, handler: BaseHTTPRequestHandler, number: int) -> None:
        """Answer one request, or don't."""
        if self.mode == "hang":
            self.released.wait()
        if self.mode == "reset":
            # A connection that is closed with this option ends by a reset.
            option = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            handler.close_connection = True
            handler.connection.close()
            return
        fails = self.mode == "fail" or (self.mode == "third" and number % 3 == 0)
        statuses = {"missing": 404, "later": 503, "loop": 302}
        handler.send_response(500 if fails else statuses.get(self.mode, 200))
        if header := HEADERS.get(self.mode):
            handler.send_header(*header)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    """Run one, until the end of the block."""
    upstream = Upstream()
    threading.Thread(target=upstream.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield upstream
    finally:
        upstream.released.set()
        upstream.server.shutdown()
        upstream.server.server_close()
