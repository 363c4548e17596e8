"""Where log lines go: to standard output, without ever waiting for whoever reads it.

While the reader keeps up, lines are written at once. When it does not, they wait in a queue that a thread empties.
What does not fit in there, or can't be written at all, is counted, and told when writing works again.
"""

from __future__ import annotations

import itertools
import os
import select
import stat
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes that may wait: some thousand lines, and little of a small container's memory.
LIMIT = 1024 * 1024
# Lines that are written at a time.
BATCH = 1000


def ensure_standard_streams() -> None:
    """Open /dev/null for what of stdin, stdout and stderr is closed: its number would go to the next socket."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Output:
    """Writes lines to the file *descriptor*, from any thread and from the event loop.

    The descriptor's mode is left alone: other processes that have it would see the change.

    Args:
        limit: Bytes that may wait for the reader.
    """

    def __init__(self, descriptor: int, limit: int = LIMIT) -> None:
        # Lines that could not be written, since the start.
        self.lost = 0
        # Called with the number of lines that were lost, when lines can be written again.
        self.on_recovery: Callable[[int], None] | None = None
        self._descriptor = descriptor
        self._limit = limit
        # What does not wait: all to a file; to a pipe, as much as pipe(7) says when poll() calls it writable.
        self._at_once = limit if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        # Reentrant: what runs at any moment, such as a signal handler or a finalizer, may log.
        self._lock = threading.RLock()
        self._queue: deque[bytes] = deque()
        # Bytes in the queue, with those that the thread has taken out and not written yet.
        self._queued = 0
        # While there is one, it alone writes.
        self._thread: threading.Thread | None = None
        self._writing = False
        self._told = 0
        self._failing = False
        # Whether what is written ends within a line whose end is lost.
        self._torn = False
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        self._poll = poll.poll

    def write(self, *lines: bytes) -> None:
        """Write whole *lines*, their ends included, now or as soon as the reader lets it."""
        with self._lock:
            idle = self._thread is None and not (self._queue or self._writing or self._torn or self._failing)
            if idle and len(lines) == 1 and len(lines[0]) <= self._at_once and self._poll(0):
                # The usual case, by the shortest way.
                try:
                    if os.write(self._descriptor, lines[0]) == len(lines[0]):
                        return
                    self._torn = True
                except OSError:
                    pass
            if self._queued + (size := sum(map(len, lines))) <= self._limit:
                self._queue.extend(lines)
                self._queued += size
            else:
                for line in lines:
                    self._keep(line)
        self._write_kept()

    def _write_kept(self) -> None:
        """Write what waits, as far as that goes without waiting; leave the rest to a thread."""
        with self._lock:
            if self._writing:
                return
            self._writing = True
            try:
                while self._queue and self._thread is None:
                    lines = self._take(self._at_once)
                    if lines and self._poll(0):
                        self._put(lines)
                    else:
                        self._queue.extendleft(reversed(lines))
                        self._start_thread()
            finally:
                self._writing = False
            lost = self._untold()
            if not self._queue and self._thread is None:
                self._queued = 0
        if lost and self.on_recovery is not None:
            self.on_recovery(lost)

    def flush(self, limit: float) -> None:
        """Wait until nothing waits any more, *limit* seconds at most."""
        self._write_kept()
        deadline = time.monotonic() + limit
        while self._thread is not None and time.monotonic() < deadline:
            time.sleep(0.005)

    def _keep(self, line: bytes) -> None:
        if self._queued + len(line) > self._limit:
            self.lost += 1
        else:
            self._queue.append(line)
            self._queued += len(line)

    def _take(self, limit: int) -> list[bytes]:
        """Take the next lines out of the queue, of *limit* bytes together at most."""
        lines: list[bytes] = []
        while self._queue and len(lines) < BATCH and (limit := limit - len(self._queue[0])) >= 0:
            lines.append(self._queue.popleft())
        return lines

    def _put(self, lines: list[bytes]) -> None:
        """Write *lines*, waiting if it must be; what can't be written is lost."""
        data, at, failed = b"".join(lines), 0, False
        try:
            if self._torn:
                os.write(self._descriptor, b"\n")
                self._torn = False
            while at < len(data):
                try:
                    at += os.write(self._descriptor, data[at:] if at else data)
                except BlockingIOError:
                    # Whoever gave us the descriptor made it so.
                    self._poll(1000)
        except OSError:
            failed = True
        with self._lock:
            self._queued -= len(data)
            self._failing = failed
            if failed:
                ends = [0, *itertools.accumulate(map(len, lines))]
                self._torn = self._torn or at not in ends
                self.lost += sum(end > at for end in ends)

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._drain, name="output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # No thread is to be had: there are too many, or the interpreter ends.
            self._thread = None
            self.lost += len(self._queue)
            self._queue.clear()
            self._queued = 0

    def _drain(self) -> None:
        while True:
            with self._lock:
                lines = self._take(self._limit)
                if not lines:
                    self._thread = None
                    lost = self._untold()
                    break
            self._put(lines)
        if lost and self.on_recovery is not None:
            self.on_recovery(lost)

    def _untold(self) -> int:
        """Return how many lines were lost since they were last told, if lines can be written now."""
        if self._thread is not None or self._failing:
            return 0
        lost, self._told = self.lost - self._told, self.lost
        return lost
