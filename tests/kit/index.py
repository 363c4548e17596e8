"""A package index of an organisation's: it speaks TLS by a CA of its own, and asks for a password."""

import base64
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kit.tools import tool

SIMPLE = "application/vnd.pypi.simple.v1+json"
EXTENSIONS = "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n"


class Handler(BaseHTTPRequestHandler):
    """Hands on what the index behind it has, to those who know the password."""

    server: "Index"

    def do_GET(self) -> None:
        self.server.logins.add(self.headers["Authorization"])
        if self.headers["Authorization"] != self.server.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="packages"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.served += 1
        kind, _, rest = self.path.lstrip("/").partition("/")
        is_page = kind == "simple"
        url = f"{self.server.behind}/{rest}" if is_page else f"https://{rest}"
        asked = {"Accept": SIMPLE} if is_page else {}
        # uv reads the end of a wheel alone, which lists its files and what it needs.
        asked |= {name: self.headers[name] for name in ("Range",) if self.headers[name]}
        try:
            with urlopen(Request(url, headers=asked, method=self.command), timeout=60) as answer:
                status, headers, body = answer.status, answer.headers, answer.read()
        except HTTPError as error:
            self.send_error(error.code)
            return
        if is_page:
            page = json.loads(body)
            for file in page["files"]:
                file["url"] = file["url"].replace("https://", "/files/", 1)
            body = json.dumps(page).encode()
        self.send_response(status)
        for name in ("Content-Type", "Content-Range", "Accept-Ranges"):
            if name in headers:
                self.send_header(name, headers[name])
        length = headers["Content-Length"] if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Index(ThreadingHTTPServer):
    """Listens on loopback.

    Args:
        behind: The address of the index that has the packages.
        password: The password of the user `team`.
        folder: Where the CA's certificate is put, as `ca.pem`.
    """

    def __init__(self, behind: str, password: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind.rstrip("/")
        self.wanted = f"Basic {base64.b64encode(f'team:{password}'.encode()).decode()}"
        self.served = 0
        # What clients have sent as their login; None is none.
        self.logins: set[str | None] = set()
        self.ca = folder / "ca.pem"
        names = ("key", "request", "leaf", "extensions")
        key, request, certificate, extensions = (folder / name for name in names)
        extensions.write_text(EXTENSIONS)
        new = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
        for command in (
            ("req", "-x509", *new, "-subj", "/CN=Our CA", "-keyout", folder / "ca.key", "-out", self.ca),
            ("req", *new[:3], "-subj", "/CN=packages", "-keyout", key, "-out", request),
            (
                *("x509", "-req", "-days", "2", "-in", request, "-CA", self.ca, "-CAkey", folder / "ca.key"),
                *("-CAcreateserial", "-extfile", extensions, "-out", certificate),
            ),
        ):
            subprocess.run((tool("openssl"), *command), check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.address = f"127.0.0.1:{self.server_port}/simple"
        self.url = f"https://{self.address}"


@contextmanager
def package_index(behind: str, password: str, folder: Path) -> Iterator[Index]:
    folder.mkdir()
    with Index(behind, password, folder) as index:
        thread = threading.Thread(target=index.serve_forever, daemon=True)
        thread.start()
        try:
            yield index
        finally:
            index.shutdown()
            thread.join()
            shutil.rmtree(folder)
