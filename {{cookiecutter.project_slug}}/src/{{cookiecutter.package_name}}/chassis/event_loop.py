"""The event loop as other threads see it: its heartbeat, how late it is, where it is stuck, and its last stalls."""

import asyncio
import contextlib
import faulthandler
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import attrs

from .logs import get_logger
from .stacks import Stack, thread_stack

# How often the loop beats, and the watchdog looks: often enough to notice what a client would, for 0.5 % of a core.
BEAT_S = 0.1
# Being late by more than this is a stall: it delays every request of that time by as much, and people notice.
STALL_S = 0.25
# If nobody asked for longer than this, the watchdog's thread did not run. Either the whole process was paused, and used
# next to no CPU (its last 0.1 s, and what a throttled machine grants), or C code held the GIL, which does use CPU.
PAUSE_S = 0.25
PAUSE_CPU_S = 0.12
PAUSE_CPU_SHARE = 0.02

log = get_logger("stalls")


class EventLoop:
    """The running event loop, if there is one, the id of its thread, and its heartbeat."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self._lock = threading.Lock()
        self._beat = self._asked = time.monotonic()
        self._cpu = time.process_time()

    async def run(self, *observers: Callable[[float], None]) -> None:
        """Beat until cancelled, and call the *observers* with the seconds that each beat was late."""
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        self._beat = time.monotonic()
        try:
            while True:
                await asyncio.sleep(self._beat + BEAT_S - time.monotonic())
                lag = self.stalled()
                for observe in observers:
                    # Whatever goes wrong in one, such as a team's log handler, the next beat must come.
                    with contextlib.suppress(Exception):
                        observe(lag)
                self._beat = time.monotonic()
        finally:
            self.loop = None

    def stalled(self) -> float:
        """Return the seconds that the event loop is overdue; time in which the whole process was paused is left out."""
        with self._lock:
            now, cpu = time.monotonic(), time.process_time()
            gap, used = now - self._asked, cpu - self._cpu
            self._asked, self._cpu = now, cpu
            if gap > PAUSE_S and used < PAUSE_CPU_S + gap * PAUSE_CPU_SHARE:
                self._beat = min(now, self._beat + gap)
        return max(0.0, now - self._beat - BEAT_S) if self.loop is not None else 0.0


@attrs.define
class Stall:
    """One stall: *at* in seconds since 1970, and what was seen most often during it."""

    at: float
    length_s: float = 0.0
    stack: Stack = ()
    request: dict[str, object] | None = None
    _seen: Counter[Stack] = attrs.field(factory=Counter)

    def add(self, stack: Stack, request: dict[str, object] | None) -> None:
        """Add an observation. The last one may be of later code, so the most frequent stack counts as the cause."""
        self._seen[stack] += 1
        if stack == max(self._seen, key=self._seen.__getitem__):
            self.stack, self.request = stack, request


class Watchdog:
    """Watches the event loop from a thread, remembers its last twenty stalls, and logs those beyond *stall_limit*.

    While C code holds the GIL, this thread stands still too; then faulthandler, without the GIL, prints the stacks.
    """

    def __init__(self, event_loop: EventLoop, stall_limit: float, running: Callable[[], dict[str, object] | None]):
        self.stalls: deque[Stall] = deque(maxlen=20)
        self._event_loop, self._limit_s, self._running = event_loop, stall_limit, running
        self._open: Stall | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def beat(self, lag: float) -> None:
        """Remember the stall behind a heartbeat that was *lag* seconds late, if the thread could not see it."""
        if lag > STALL_S and self._open is None:
            self.stalls.append(Stall(time.time() - lag, lag, ("not seen: C code held the GIL",)))

    def _watch(self) -> None:
        # If this thread has not run, but the process has computed so long, one thread has the GIL and no other runs.
        faulthandler.register(signal.SIGPROF, file=2)  # sys.stderr may be None, or no file.
        # Otherwise the process may have been paused and goes on: to read the stack of a thread that runs may crash
        # (CPython's issue 116008; so may dump_traceback_later). The event loop's thread prints its own.
        faulthandler.register(signal.SIGALRM, file=2, all_threads=False)
        while not self._stopped.wait(BEAT_S):
            signal.setitimer(signal.ITIMER_PROF, self._limit_s + 1)
            signal.setitimer(signal.ITIMER_REAL, self._limit_s + 1)
            # Whatever goes wrong in one look, the next one must take place.
            with contextlib.suppress(Exception):
                self._look()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self) -> None:
        # Read the stack before the lag: if the lag then shows a stall, this is the code that caused it.
        stack = thread_stack(self._event_loop.thread)
        late_s, stall = self._event_loop.stalled(), self._open
        if late_s > STALL_S:
            stall = self._open = stall or Stall(time.time() - late_s)
            stall.add(stack, self._running())
            if stall.length_s <= self._limit_s < late_s:
                log.error("event loop blocked", for_s=round(late_s, 3), where=list(stall.stack), request=stall.request)
            stall.length_s = max(stall.length_s, late_s)
        elif stall is not None:
            self._open = None
            self.stalls.append(stall)
            if stall.length_s > self._limit_s:
                log.warning("event loop unblocked", after_s=round(stall.length_s, 3))
