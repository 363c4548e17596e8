"""A collector that receives spans by OTLP over HTTP, as an exporter sends them; it can hang and refuse."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kit.readers import running
from kit.service import LOOPBACK, free_ports, wait_for
from kit.tools import tool


@dataclass(frozen=True)
class Span:
    """A span as it was received; ids as in a log line."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, Any]

    @property
    def ids(self) -> tuple[str, str]:
        return self.trace_id, self.span_id


def values(attributes: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource as Python's own values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector:
    """What was received, and how it behaves: *mode* is ``take``, ``refuse`` or ``hang``."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.mode = "take"
        self.asked = 0
        self.released = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                self.send_response(collector.receive(self.path, body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.server.server_port}"

    def settings(self, name: str = "traced", **more: str) -> dict[str, Any]:
        """Return the variables that send spans here, soon."""
        soon = {"OTEL_SERVICE_NAME": name, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, **soon, **more}

    def receive(self, path: str, body: bytes) -> int:
        """Take a request of an exporter; return the status."""
        assert path == "/v1/traces", path
        self.asked += 1
        if self.mode == "hang":
            self.released.wait()
        if self.mode != "take":
            return 503
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    failed = span.status.code == span.status.STATUS_CODE_ERROR
                    attributes = values(span.attributes)
                    self.spans.append(Span(service, span.name, span.kind, *ids, failed, attributes))
        return 200

    def find(self, wanted: Callable[[Span], bool], count: int = 1) -> list[Span]:
        """Wait for *count* spans."""

        def found() -> list[Span]:
            spans = [span for span in self.spans if wanted(span)]
            return spans if len(spans) >= count else []

        return wait_for(found, f"{count} spans; there are {self.spans}")


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector, until the end of the block."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.released.set()
        collector.server.shutdown()
        collector.server.server_close()


@contextmanager
def running_rotel(collector: Collector, log: Path) -> Iterator[str]:
    """Run Rotel, an OpenTelemetry collector of others, which sends on to *collector*; yield its endpoint."""
    http, grpc = (f"{LOOPBACK}:{port}" for port in free_ports(2))
    receives = ("--otlp-http-endpoint", http, "--otlp-grpc-endpoint", grpc, "--disable-batching")
    sends = ("--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", collector.endpoint)

    def ready() -> None:
        socket.create_connection((LOOPBACK, int(http.rpartition(":")[2]))).close()

    with running(tool("rotel"), "start", *receives, *sends, log=log, ready=ready, env={}):
        yield f"http://{http}"
