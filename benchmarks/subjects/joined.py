"""The subject on stock uvicorn with the chassis' joined writes, without its middleware: joined.py PORT."""

import asyncio
import sys

import uvicorn
from my_service.chassis.http.connection import JoinedWrites
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Joined(HttpToolsProtocol):
    # asyncio promises less than a Transport; an event loop makes one of every socket.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoinedWrites(transport, self.loop))


if __name__ == "__main__":
    port = int(sys.argv[1])
    uvicorn.run("subject:app", http=Joined, port=port, loop="uvloop", access_log=False, log_level="warning")
