"""Where the process is: every thread's stack, every task's chain of awaits, and the stalls of the event loop.

Read from outside the event loop, so also while it is stuck. Places only: file, line, function; never a value.
"""

from __future__ import annotations

import asyncio
import faulthandler
import re
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import msgspec

from .logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from .health import Health

Stack = tuple[str, ...]
# From when on a late event loop is a stall, in seconds.
STALL = 0.25
TICK = 0.1
ASYNCIO = re.compile(r"[/\\]asyncio[/\\]\w+\.py:")
# A thread of concurrent.futures that waits for work.
IDLE = re.compile(r"concurrent.futures.thread\.py:\d+ _worker$")

log = get_logger("stalls")


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


def thread_stack(thread: int) -> Stack:
    """Return the stack of the thread with the id *thread*, innermost place last; empty when it has ended."""
    frame = sys._current_frames().get(thread)
    places: list[str] = []
    while frame is not None:
        places.append(_place(frame))
        frame = frame.f_back
    return tuple(reversed(places))


def await_chain(task: asyncio.Task[Any]) -> Stack:
    """Return what *task* waits for, innermost place last; a running task ends where it was awaited last."""
    places: list[str] = []
    waiting: Any = task.get_coro()
    while (frame := _first(waiting, "cr_frame", "gi_frame", "ag_frame")) is not None:
        places.append(_place(frame))
        waiting = _first(waiting, "cr_await", "gi_yieldfrom", "ag_await")
    return tuple(places)


def _first(waiting: Any, *names: str) -> Any:
    """Return the first attribute of *names* that is set: coroutines and generators name the same differently."""
    return next((value for name in names if (value := getattr(waiting, name, None)) is not None), None)


def where(stack: Stack) -> str | None:
    """Return the innermost place of *stack* outside asyncio: what the service waits for, not how."""
    return next((place for place in reversed(stack) if not ASYNCIO.search(place)), None)


def describe(loop: asyncio.AbstractEventLoop | None) -> str:
    """Return all threads and all tasks of *loop* as text, the same stacks once, with how many there are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        (names.get(ident, "not started by Python"), thread_stack(ident))
        for ident in sys._current_frames()
        if ident != threading.get_ident()
    ]
    idle = [name for name, stack in threads if stack and IDLE.search(stack[-1])]
    busy = [(f"thread {name}", stack) for name, stack in threads if name not in idle]
    tasks = [("task", await_chain(task)) for task in asyncio.all_tasks(loop)] if loop is not None else []
    parts = [f"{len(threads)} threads, {len(idle)} of them idle in a pool; {len(tasks)} tasks\n"]
    for (what, stack), count in Counter((*busy, *tasks)).most_common():
        parts.append("\n".join([f"{count} x {what}" if count > 1 else what, *(f"  {place}" for place in stack)]) + "\n")
    return "\n".join(parts)


class Stall(msgspec.Struct):
    """One time that the event loop stood still: *at* in seconds since 1970, *length* in seconds."""

    at: float
    length: float = 0.0
    stack: Stack = ()
    request: dict[str, object] | None = None
    logged: bool = False
    _seen: Counter[Stack] = msgspec.field(default_factory=Counter)

    def look(self, stack: Stack, request: dict[str, object] | None) -> None:
        """Take what is seen most often for the cause: the last look may show what ran after it."""
        self._seen[stack] += 1
        if stack == max(self._seen, key=self._seen.__getitem__):
            self.stack, self.request = stack, request


class Watchdog:
    """Watches the event loop from a thread, remembers its last twenty stalls, and logs those that are too long.

    While C code holds the GIL this thread stands still as well: faulthandler, which needs no GIL, then prints all
    stacks on stderr.
    """

    def __init__(self, health: Health, running: Callable[[], dict[str, object] | None]) -> None:
        self.stalls: deque[Stall] = deque(maxlen=20)
        self._health = health
        self._running = running
        self._end = threading.Event()
        self._open: Stall | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def beat(self, lag: float) -> None:
        """Hear of a heartbeat that came *lag* seconds late, and remember a stall that this thread could not see."""
        if lag > STALL and self._open is None:
            self.stalls.append(Stall(time.time() - lag, lag, ("not seen: C code held the GIL",)))

    def _watch(self) -> None:
        armed = 0.0
        while not self._end.wait(TICK):
            now = time.monotonic()
            if now - armed > 1:
                faulthandler.dump_traceback_later(self._health.stall_limit + 1)
                armed = now
            # The stack first: when the loop is late after that, it was there.
            stack = thread_stack(self._health.thread)
            late = self._health.stalled()
            if late > STALL:
                self._open = self._open or Stall(time.time() - late)
                self._open.length = late
                self._open.look(stack, self._running())
                self._report(self._open)
            elif self._open is not None:
                self.stalls.append(self._open)
                if self._open.logged:
                    log.warning("the event loop moves again", after_s=round(self._open.length, 3))
                self._open = None
        faulthandler.cancel_dump_traceback_later()

    def _report(self, stall: Stall) -> None:
        if stall.length > self._health.stall_limit and not stall.logged:
            stall.logged = True
            log.error("the event loop is stuck", for_s=round(stall.length, 3), stack=stall.stack, request=stall.request)
