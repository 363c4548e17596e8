"""Standard output for log lines: written at once while the reader keeps up, by a thread when it does not.

The event loop never waits for whoever reads the logs. Lines that do not fit in the queue, or that can't be written,
are lost and counted.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

# Some thousand lines, and little of a small container's memory.
QUEUE_BYTES = 1024 * 1024


def ensure_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed: a socket would get its number otherwise."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


class Output:
    """Writes lines to the file *descriptor*, from any thread and from signal handlers; it leaves its mode alone.

    Args:
        on_recovery: Called with the number of lost lines when a line has been written at once again.
        queue_bytes: Bytes that may wait for the reader.
    """

    def __init__(self, descriptor: int, on_recovery: Callable[[int], None], queue_bytes: int = QUEUE_BYTES) -> None:
        # Lines that could not be written, since the start, and how many of them were reported.
        self.lost = self._reported = 0
        self._descriptor, self._on_recovery, self._queue_bytes = descriptor, on_recovery, queue_bytes
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        self._is_writable = poll.poll
        # Whether what was written ends inside a line.
        self._is_inside_line = False
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Begin with an empty queue; in a forked child the parent's thread is gone, and its lock may be held."""
        # Re-entrant, because a signal handler may log while its thread is in here.
        self._lock = threading.RLock()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None

    def queue(self, line: bytes) -> bool:
        """Leave a whole *line*, its end included, to the next `drain`; return whether it is the only one there."""
        with self._lock:
            if self._queued_bytes + len(line) > self._queue_bytes:
                self.lost += 1
                return False
            self._queue.append(line)
            self._queued_bytes += len(line)
            return len(self._queue) == 1

    def write(self, line: bytes) -> None:
        """Write a whole *line*, its end included, now or as soon as the reader allows it."""
        self.queue(line)
        self.drain()

    def drain(self) -> None:
        """Write what is in the queue; what the reader has no room for is left to a thread."""
        is_written = False
        with self._lock:
            while self._queue and self._thread is None:
                # A write of PIPE_BUF bytes can't block when poll() calls a pipe writable (pipe(7)).
                if len(self._queue[0]) <= select.PIPE_BUF and self._is_writable(0):
                    is_written = self._put(self._next())
                else:
                    self._start_thread()
            lost = self.lost - self._reported if is_written else 0
            self._reported += lost
        if lost:
            self._on_recovery(lost)

    def flush(self, timeout_s: float) -> None:
        """Write what is in the queue, and wait for its reader, *timeout_s* seconds at most."""
        self.drain()
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and time.monotonic() < deadline:
            time.sleep(0.005)

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._drain_slowly, name="output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # There are too many threads, or the interpreter ends.
            self._thread = None
            self.lost += len(self._queue)
            self._queue.clear()
            self._queued_bytes = 0

    def _drain_slowly(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    break
                data = self._next()
            self._put(data)

    def _next(self) -> bytes:
        """Take as many lines as one write may have out of the queue; a longer line is one by itself."""
        data = self._queue.popleft()
        while self._queue and len(data) + len(self._queue[0]) <= select.PIPE_BUF:
            data += self._queue.popleft()
        return data

    def _put(self, data: bytes) -> bool:
        """Write *data*, and wait for the reader if it must be; return whether that worked. If not, lines are lost."""
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
        except OSError:
            self._is_inside_line = self._is_inside_line or data[:written][-1:] not in (b"", b"\n")
        with self._lock:
            self._queued_bytes -= len(data)
            self.lost += data.count(b"\n", written)
        return written == len(data)
