"""Contract, section 4: a reader that is slow or gone costs lines at most, counted, and never a wait."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.service import wait_for
from my_service.chassis.output import Output

from .start import PROBE, Start

# What the pipes of these tests hold.
SIZE = 4096
LINES = [b"%063d\n" % number for number in range(200)]


class Pipe:
    """A small pipe; *end* is where it is read."""

    def __init__(self) -> None:
        self.end, self.start = os.pipe()
        fcntl.fcntl(self.start, fcntl.F_SETPIPE_SZ, SIZE)
        os.set_blocking(self.end, False)

    def read(self, size: int = 1 << 20) -> bytes:
        try:
            return os.read(self.end, size)
        except BlockingIOError:
            return b""

    def read_until(self, last: bytes) -> bytes:
        """Read on until *last* has come."""
        data = b""

        def more() -> bool:
            nonlocal data
            data += self.read()
            return last in data

        wait_for(more)
        return data

    def leave(self) -> None:
        """Stop reading for good."""
        os.close(self.end)
        self.end = -1

    def close(self) -> None:
        if self.end >= 0:
            self.leave()
        os.close(self.start)


def ignore(_lost: int) -> None: ...


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def test_a_slow_reader_gets_all_lines_and_nobody_waits_for_it(pipe: Pipe) -> None:
    output = Output(pipe.start, ignore)
    for line in LINES:
        output.write(line)
    output.flush(0.01)
    assert pipe.read_until(LINES[-1]) == b"".join(LINES)
    output.flush(10)
    output.write(b"at once again\n")
    assert pipe.read() == b"at once again\n"
    assert output.lost == 0


def test_lines_that_do_not_fit_are_counted_and_reported(pipe: Pipe) -> None:
    told: list[int] = []
    output = Output(pipe.start, told.append, queue_bytes=2 * SIZE)
    # A full pipe: none of the lines can leave the queue before the last of them has come.
    before = b"x" * (SIZE - 1) + b"\n"
    os.write(pipe.start, before)
    for line in LINES:
        output.write(line)
    # Whoever has the lock counts them all: this thread, or the one that waits for the reader.
    wait_for(lambda: output.lost and not output._new)
    with output._lock:
        assert output.lost < len(LINES)
    output.flush(0)
    assert told == []
    kept = LINES[: len(LINES) - output.lost]
    assert pipe.read_until(kept[-1]) == before + b"".join(kept)
    wait_for(lambda: told)
    assert told == [output.lost]


def test_lines_that_can_not_be_written_are_reported_once_they_can(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as file, (tmp_path / "log").open("wb") as good:
        told: list[int] = []
        output = Output(file.fileno(), told.append)
        for number in (1, 2, 3):
            output.write(b"lost\n")
            assert output.lost == number
        assert told == []
        os.dup2(good.fileno(), file.fileno())
        output.write(b"kept\n")
        assert told == [3]
    assert (tmp_path / "log").read_bytes() == b"kept\n"


def test_a_line_whose_end_is_lost_spoils_no_other(pipe: Pipe) -> None:
    output = Output(pipe.start, ignore)
    output.write(b"x" * 3 * SIZE + b"\n")
    wait_for(lambda: pipe.read(SIZE))
    pipe.leave()
    wait_for(lambda: output.lost == 1)
    output.flush(10)
    with closing(Pipe()) as other:
        os.dup2(other.start, pipe.start)
        output.write(b"1\n")
        output.write(b"2\n")
        assert other.read_until(b"2\n") == b"\n1\n2\n"


def test_a_descriptor_that_never_waits_is_as_good(pipe: Pipe) -> None:
    os.set_blocking(pipe.start, False)
    output, long = Output(pipe.start, ignore), b"x" * 3 * SIZE + b"\n"
    output.write(long)
    assert pipe.read_until(b"\n") == long


def test_without_a_thread_lines_are_lost_and_the_caller_goes_on(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(pipe.start, ignore)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    output.write(b"x" * 2 * SIZE + b"\n")
    assert output.lost == 1
    output.write(b"short\n")
    assert pipe.read() == b"short\n"


def test_a_forked_child_begins_with_an_empty_queue(pipe: Pipe) -> None:
    output = Output(pipe.start, ignore)
    for line in LINES:
        output.write(line)
    if (child := os.fork()) == 0:
        output.flush(0.5)
        os._exit(output._queued_bytes)
    assert os.waitpid(child, 0)[1] == 0
    assert pipe.read_until(LINES[-1]) == b"".join(LINES)


def test_what_interrupts_a_write_may_log(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    output, write = Output(pipe.start, ignore), os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        if data == b"first\n":
            output.write(b"signal\n")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupted)
    output.write(b"first\n")
    output.write(b"second\n")
    assert sorted(pipe.read_until(b"second\n").splitlines()) == [b"first", b"second", b"signal"]


def test_all_lines_are_written_or_counted_whoever_interrupts_whom(pipe: Pipe) -> None:
    output = Output(pipe.start, ignore, queue_bytes=2 * SIZE)
    done, received, logged = threading.Event(), bytearray(), 0

    def read() -> None:
        while (data := pipe.read(1000)) or not done.is_set():
            received.extend(data)

    def log(name: bytes, count: int) -> None:
        for number in range(count):
            output.queue(b"queued %s %d\n" % (name, number))
            output.write(b"%s %d\n" % (name, number))

    def interrupt(*_: object) -> None:
        nonlocal logged
        logged += 1
        output.write(b"signal %d\n" % logged)

    before = signal.signal(signal.SIGALRM, interrupt)
    threads = [threading.Thread(target=read), threading.Thread(target=log, args=(b"thread", 2000))]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        log(b"main", 10_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threads[1].join()
    output.flush(30)
    done.set()
    threads[0].join()
    # The reader may have found nothing just before the last lines came.
    received.extend(pipe.read())
    lines = [line.rpartition(b" ") for line in bytes(received).splitlines()]
    assert logged > 0
    assert len(lines) + output.lost == 24_000 + logged
    assert len(set(lines)) == len(lines)
    for name in (b"main", b"queued main", b"thread", b"queued thread"):
        numbers = [int(number) for of, _, number in lines if of == name]
        assert numbers == sorted(numbers), name


def test_what_a_file_takes_in_part_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    sizes = iter([3])
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: next(sizes, None)]))
    with (tmp_path / "log").open("wb") as file:
        Output(file.fileno(), ignore).write(b"first\n")
    assert (tmp_path / "log").read_bytes() == b"first\n"


def test_a_closed_standard_stream_does_not_become_a_connection(start: Start) -> None:
    process = start.run(["sh", "-c", 'exec "$0" "$@" <&-', *PROBE], {"APP_PROBE_NAME": "probe"}).ready()
    assert Path(f"/proc/{process.popen.pid}/fd/0").readlink() == Path("/dev/null")
