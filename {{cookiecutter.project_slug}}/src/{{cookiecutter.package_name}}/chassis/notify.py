"""What systemd is told when it asks for it with ``NOTIFY_SOCKET``: ready, stopping, and that the event loop moves.

The protocol of sd_notify(3) is one datagram a message. Without that variable nothing here does anything.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from .logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .health import State

# Seconds to wait for a manager that does not read.
LIMIT = 1.0

log = get_logger("notify")


class Notifier:
    """Tells the service manager that *env* names; it is called in the event loop alone."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        # As sd_watchdog_enabled(3) advises: twice in the time after which the manager gives up.
        self._every = int(env.get("WATCHDOG_USEC") or 0) / 2_000_000
        self._due = 0.0

    def state(self, state: State) -> None:
        """Pass on a change of state."""
        self._tell("READY=1" if state == "ready" else "STOPPING=1")

    def beat(self, _late: float) -> None:
        """Hear of a heartbeat of the event loop, and feed the watchdog when it is time to."""
        if self._every and (now := time.monotonic()) >= self._due:
            self._due = now + self._every
            self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(LIMIT)
                sock.sendto(message.encode(), address)
        except OSError as error:
            log.warning("service manager not told", message=message, error=str(error))
