"""One system call an answer: uvicorn writes header block and body apart, and each call costs more than the rest."""

import asyncio
from typing import Any

# Above this size, only the transport's own back pressure keeps a fast writer from filling the memory.
JOIN_LIMIT_BYTES = 64 * 1024


class JoinedWrites:
    """An asyncio transport that sends together what is written in one iteration of the event loop."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send *data* with whatever else is written before the event loop goes round."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= JOIN_LIMIT_BYTES:
            self._flush()

    def write_eof(self) -> None:
        """End this direction after what was written."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close the connection after what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._bytes = 0
        # A client may have reset the connection since.
        if data and not self.is_closing():
            self._transport.write(data)
