"""Contract, section 7: what a service manager that asks for it is told."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kit.service import Asking, wait_for

from .start import Start


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A socket as systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(60)
        yield sock


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: an address has 107 characters at most, and pytest's folders are long."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Told:
    """What has been heard so far."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.messages: list[str] = []

    def until(self, message: str) -> None:
        while message not in self.messages[-1:]:
            self.messages.append(self._sock.recv(100).decode())

    def all(self) -> list[str]:
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.messages.append(self._sock.recv(100).decode())
        self._sock.settimeout(60)
        return self.messages


def test_the_manager_hears_when_it_is_ready_moves_and_stops(start: Start, folder: Path) -> None:
    with manager(str(folder / "notify")) as sock:
        told = Told(sock)
        asked = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000"}
        process = start(**asked, APP_PROBE_START_DELAY="2")
        told.until("READY=1")
        assert process.lines("listening")
        assert told.messages.count("WATCHDOG=1") >= 1

        # A loop that does not move feeds nothing, though the admin port answers.
        stuck = Asking(process, "/block?s=5")
        wait_for(lambda: process.ask("/-/ready", port="admin").status == 503)
        before = len(told.all())
        time.sleep(0.25)
        after = len(told.all())
        assert process.ask("/-/ready", port="admin").status == 503
        assert after == before
        stuck.join()

        told.until("WATCHDOG=1")
        assert process.stop() == 0
        assert [message for message in told.all() if message != "WATCHDOG=1"] == ["READY=1", "STOPPING=1"]


def test_a_worker_that_makes_no_progress_feeds_nothing(start: Start, folder: Path) -> None:
    (folder / "1-bone").touch()
    with manager(str(folder / "notify")) as sock:
        told = Told(sock)
        asked = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000"}
        process = start("worker", "eater", app="working", WORK=str(folder), **asked).ready()
        told.until("WATCHDOG=1")
        # It is read meanwhile: whoever sends waits when there are ten messages that nobody reads.
        wait_for(lambda: told.all() and process.status("/-/healthy", "admin") == 503, "the failing liveness")
        before = len(told.all())
        time.sleep(0.5)
        assert len(told.all()) == before
        process.kill()


def test_any_address_will_do_none_too_and_a_deaf_manager_stops_nothing(start: Start, folder: Path) -> None:
    deaf = start(NOTIFY_SOCKET=str(folder / "nobody")).ready()
    line = deaf.line("service manager not notified")
    assert (line["message"], line["error"]) == ("READY=1", "[Errno 2] No such file or directory")
    assert deaf.stop() == 0
    with manager(f"\0{folder}") as sock:
        assert start(NOTIFY_SOCKET=f"@{folder}").ready().stop() == 0
        assert sock.recv(100) == b"READY=1"
    alone = start(WATCHDOG_USEC="200000").ready()
    assert alone.stop() == 0
    assert not alone.lines("service manager not notified")


@pytest.mark.parametrize("interval", ["abc", "-1", "1e6", "٣"])
def test_an_interval_that_is_no_number_is_reported_and_ignored(start: Start, interval: str) -> None:
    process = start(WATCHDOG_USEC=interval).ready()
    assert process.line("variable ignored")["setting"] == "WATCHDOG_USEC"
    assert process.stop() == 0
