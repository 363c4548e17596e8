"""What systemd hears if it asks for it with ``NOTIFY_SOCKET``: ready, stopping, and that the event loop is alive.

The protocol of sd_notify(3) is one datagram a message. Without that variable nothing here does anything.
"""

import socket
import time
from collections.abc import Mapping

from .lifecycle import State
from .logs import get_logger

# Seconds to wait for a manager that does not read.
SEND_TIMEOUT_S = 1.0

log = get_logger("systemd")


class Notifier:
    """Notifies the service manager that *env* names; called in the event loop alone."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        interval_us = env.get("WATCHDOG_USEC", "")
        if interval_us and not (interval_us.isascii() and interval_us.isdecimal()):
            log.warning("variable ignored", setting="WATCHDOG_USEC", problem="is no whole number of microseconds")
            interval_us = ""
        # As sd_watchdog_enabled(3) advises: twice in the time after which the manager gives up.
        self._interval_s = int(interval_us or 0) / 2_000_000
        self._due = 0.0

    def state(self, state: State) -> None:
        """Pass on a change of state."""
        if message := {State.READY: "READY=1", State.DRAINING: "STOPPING=1"}.get(state):
            self._send(message)

    def beat(self, _lag_s: float) -> None:
        """Feed the watchdog, when it is time to, with a heartbeat of the event loop."""
        if self._interval_s and (now := time.monotonic()) >= self._due:
            self._due = now + self._interval_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto(message.encode(), address)
        except OSError as error:
            log.warning("service manager not notified", message=message, error=str(error))
