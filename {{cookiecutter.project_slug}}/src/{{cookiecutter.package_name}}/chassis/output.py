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
        on_recovery: Called with the number of lost lines when lines can be written again.
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
        self._lock = threading.Lock()
        # New lines, added without the lock; and those that were counted, and wait to be written.
        self._new, self._queue = deque[bytes](), deque[bytes]()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None

    def queue(self, line: bytes) -> bool:
        """Leave a whole *line*, its end included, to the next `drain`; return whether it is the only one there."""
        self._new.append(line)
        return len(self._new) == 1

    def write(self, line: bytes) -> None:
        """Write a whole *line*, its end included, now or as soon as the reader allows it."""
        self._new.append(line)
        self.drain()

    def drain(self) -> None:
        """Write what is in the queue; what the reader has no room for is left to a thread."""
        # A signal handler may have interrupted whoever has the lock, who takes the new lines as well.
        while self._new and self._lock.acquire(blocking=False):
            try:
                lost = self._write_or_start_thread()
            finally:
                self._lock.release()
            if lost:
                self._on_recovery(lost)

    def flush(self, timeout_s: float) -> None:
        """Write what is in the queue, and wait for its reader, *timeout_s* seconds at most."""
        self.drain()
        deadline = time.monotonic() + timeout_s
        while (self._new or self._thread is not None) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write_or_start_thread(self) -> int:
        """Write what the reader has room for, or start the thread; return how many lines are to be reported as lost."""
        is_written = False
        self._count_new()
        while self._queue and self._thread is None:
            # A write of PIPE_BUF bytes can't block when poll() calls a pipe writable (pipe(7)).
            if len(self._queue[0]) <= select.PIPE_BUF and self._is_writable(0):
                data = self._next()
                is_written = self._done(data, self._put(data))
                continue
            self._thread = threading.Thread(target=self._drain_slowly, name="output", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # There are too many threads, or the interpreter ends.
                self._thread = None
                self._done(self._next(), 0)
        return self._unreported(is_written)

    def _drain_slowly(self) -> None:
        is_written = False
        while True:
            with self._lock:
                self._count_new()
                if not self._queue:
                    self._thread, lost = None, self._unreported(is_written)
                    break
                data = self._next()
            written = self._put(data)
            with self._lock:
                is_written = self._done(data, written)
        if lost:
            self._on_recovery(lost)
        self.drain()

    def _unreported(self, is_written: bool) -> int:
        """Return how many lines are to be reported as lost, once: there are none while lines can't be written."""
        lost = self.lost - self._reported if is_written else 0
        self._reported += lost
        return lost

    def _count_new(self) -> None:
        while self._new:
            line = self._new.popleft()
            if (size := self._queued_bytes + len(line)) > self._queue_bytes:
                self.lost += 1
            else:
                self._queue.append(line)
                self._queued_bytes = size

    def _next(self) -> bytes:
        """Take as many lines as one write may have out of the queue; a longer line is one by itself."""
        data = self._queue.popleft()
        while self._queue and len(data) + len(self._queue[0]) <= select.PIPE_BUF:
            data += self._queue.popleft()
        return data

    def _put(self, data: bytes) -> int:
        """Write *data*, and wait for the reader if it must be; return how many bytes were written."""
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
        return written

    def _done(self, data: bytes, written: int) -> bool:
        """Take *data* off the books; lines that were not written whole are lost. Return whether all were."""
        self._queued_bytes -= len(data)
        self.lost += data.count(b"\n", written)
        return written == len(data)
