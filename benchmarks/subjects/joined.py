"""The subject on stock uvicorn with the chassis' joined writes, without its middleware: joined.py PORT."""

import asyncio
import importlib
import sys
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PACKAGE = next(path.parent.name for path in Path("src").glob("*/__main__.py"))
JoinedWrites = importlib.import_module(f"{PACKAGE}.chassis.server").JoinedWrites


class Joined(HttpToolsProtocol):
    # asyncio promises less than a Transport; an event loop makes one of every socket.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoinedWrites(transport, self.loop, lambda: False))


if __name__ == "__main__":
    port = int(sys.argv[1])
    uvicorn.run("subject:app", http=Joined, port=port, loop="uvloop", access_log=False, log_level="warning")
