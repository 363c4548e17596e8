"""Standard output for log lines: written at once while the reader keeps up, by a thread when it does not.

The event loop never waits for whoever reads the logs. Lines that do not fit in the queue, or that can't be written,
are lost and counted.
"""

import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

# Some thousand lines, and little of a small container's memory.
QUEUE_BYTES = 1024 * 1024


def ensure_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed: a socket would get its number otherwise."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Output:
    """Writes lines to the file *descriptor*, from any thread and from signal handlers; it leaves its mode alone.

    Args:
        on_recovery: Called with the number of lost lines when lines can be written again.
        queue_bytes: Bytes that may wait for the reader.
    """

    def __init__(self, descriptor: int, on_recovery: Callable[[int], None], queue_bytes: int = QUEUE_BYTES) -> None:
        # Lines that could not be written, since the start, and how many of them were reported.
        self.lost = self._reported = 0
        self._descriptor = descriptor
        self._on_recovery = on_recovery
        self._queue_bytes = queue_bytes
        # The largest write that can't block: any for a file; PIPE_BUF for a pipe that poll() calls writable (pipe(7)).
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._atomic_bytes = queue_bytes if is_file else select.PIPE_BUF
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        self._is_writable = poll.poll
        # Whether the last write failed, and whether what was written ends inside a line.
        self._is_failing = self._is_inside_line = False
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Begin with an empty queue; in a forked child the parent's thread is gone, and its lock may be held."""
        # Re-entrant, because a signal handler may log while its thread is in here.
        self._lock = threading.RLock()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None

    def write(self, *lines: bytes) -> None:
        """Write whole *lines*, their ends included, now or as soon as the reader allows it."""
        with self._lock:
            for data in self._join(lines):
                if self._thread is None and len(data) <= self._atomic_bytes and self._is_writable(0):
                    self._put(data)
                elif self._queued_bytes + len(data) > self._queue_bytes or not self._ensure_thread():
                    self.lost += data.count(b"\n")
                else:
                    self._queue.append(data)
                    self._queued_bytes += len(data)
        self._report()

    def _join(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Make as few writes of *lines* as can't block; a longer line is one by itself."""
        data = b""
        for line in lines:
            if data and len(data) + len(line) > self._atomic_bytes:
                yield data
                data = b""
            data += line
        yield data

    def flush(self, timeout_s: float) -> None:
        """Wait until the queue is empty, *timeout_s* seconds at most."""
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and time.monotonic() < deadline:
            time.sleep(0.005)

    def _ensure_thread(self) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._empty_queue, name="output", daemon=True)
            try:
                # It waits for the lock until the line is in the queue.
                self._thread.start()
            except RuntimeError:
                # There are too many threads, or the interpreter ends.
                self._thread = None
        return self._thread is not None

    def _empty_queue(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    break
                data = self._queue.popleft()
            self._put(data)
            with self._lock:
                self._queued_bytes -= len(data)
        self._report()

    def _put(self, data: bytes) -> None:
        """Write *data*, and wait for the reader if it must be; lines that can't be written whole are lost."""
        written = 0
        try:
            if self._is_inside_line:
                os.write(self._descriptor, b"\n")
                self._is_inside_line = False
            while written < len(data):
                try:
                    written += os.write(self._descriptor, data[written:])
                except BlockingIOError:
                    # Whoever started this process made the descriptor non-blocking.
                    self._is_writable(1000)
            self._is_failing = False
        except OSError:
            self._is_failing = True
            self._is_inside_line = self._is_inside_line or data[:written][-1:] not in (b"", b"\n")
            with self._lock:
                self.lost += data.count(b"\n", written)

    def _report(self) -> None:
        if self.lost == self._reported:
            return
        with self._lock:
            if self._thread is not None or self._is_failing:
                return
            lost, self._reported = self.lost - self._reported, self.lost
        self._on_recovery(lost)
