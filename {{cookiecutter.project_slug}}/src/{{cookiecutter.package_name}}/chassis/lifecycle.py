"""Where this instance is in its life, who wants to know, and what moves it on: signals, and the deadline of a stop."""

import asyncio
import contextlib
import contextvars
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from enum import StrEnum
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logs import flush, get_logger
from .stacks import await_chain, run_in_thread, thread_stack, where

# A stop may take 2 s beyond APP_DRAIN_DELAY + APP_DRAIN_TIMEOUT (contract, section 7); the rest is for the last lines.
STOP_MARGIN_S = 1.7
FLUSH_TIMEOUT_S = 0.2

EVENTS = {"starting": "startup failed", "ready": "lifespan failed", "draining": "shutdown failed"}

log = get_logger("lifecycle")


class State(StrEnum):
    """The four parts of an instance's life, in their order."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    """The life of this instance. The server drives it; health, requests, systemd and the admin port look at it.

    A service finds it in its svcs registry: a long answer ends itself after ``await lifecycle.draining.wait()``.
    """

    def __init__(self, delay_s: float = 0, timeout_s: float = 0) -> None:
        # Between a stop signal and closing the listener; and for in-flight requests after that.
        self.delay_s, self.timeout_s = delay_s, timeout_s
        # Seconds since 1970, for people; all durations are measured by a clock that nobody sets.
        self.started = time.time()
        self._began = time.monotonic()
        self.state = State.STARTING
        self.draining = asyncio.Event()
        self.hangup = asyncio.Event()
        # The exit status, by what was asked for and what has failed.
        self.status = 0
        # How many requests are in flight, for the last line of a stop that takes too long.
        self.requests: Callable[[], int] = int
        self.stuck: Callable[[], str | None] = lambda: None  # Where the worker waits that makes no progress, if so.
        self._observers: list[Callable[[State], object]] = []
        self._main: asyncio.Task[None] | None = None
        self.signal_status = 0  # What a shell reports for a program that a signal has ended, once one asks to stop.
        self._deadline = math.inf
        # Not an Event: a signal handler may interrupt a put() and put as well.
        self._stopping: queue.SimpleQueue[None] = queue.SimpleQueue()
        # nohup(1) ignores the signal beforehand: such a process wants to outlive its terminal.
        self._had_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    @property
    def uptime(self) -> float:
        """Seconds since this process began to work, whatever is done to the wall clock."""
        return time.monotonic() - self._began

    @property
    def time_left_s(self) -> float:
        """Seconds that a stop may still take, less a moment to say what did not end in time."""
        return max(0.0, self._deadline - time.monotonic() - 0.1)

    def observe(self, callback: Callable[[State], object]) -> None:
        """Call *callback* with each new state, in the event loop."""
        self._observers.append(callback)

    def advance(self, state: State) -> None:
        """Enter *state*; an instance never goes back."""
        if list(State).index(state) > list(State).index(self.state):
            self.state = state
            if state is State.READY:
                log.info("ready", after_s=round(self.uptime, 3))
            for callback in self._observers:
                try:
                    callback(state)
                except Exception as error:
                    log.error("observer failed", state=state, exc_info=error)

    def exit_with(self, status: int) -> None:
        """Exit with *status* in the end; of several, the first that is not 0 counts."""
        self.status = self.status or status

    def stop(self, reason: str, *, status: int = 0, at_once: bool = False) -> None:
        """Begin to drain, and end with *status*; *at_once*: without the delay."""
        self.exit_with(status)
        if self.draining.is_set():
            return
        self.set_deadline(at_once)
        self.draining.set()
        log.info("draining", reason=reason, delay_s=self.delay_s, timeout_s=self.timeout_s)
        if self.state is State.STARTING and self._main is not None:
            self._main.cancel()  # A start that is not done yet is called off, and so is a command.
        self.advance(State.DRAINING)

    def set_deadline(self, at_once: bool = True) -> None:
        """Let the process end in the time of a stop that begins now; *at_once*: without the delay."""
        self.delay_s = 0 if at_once else self.delay_s
        self._deadline = min(self._deadline, time.monotonic() + self.delay_s + self.timeout_s + STOP_MARGIN_S)
        self._stopping.put(None)

    def install(self, main: asyncio.Task[None]) -> None:
        """Handle signals from now on, for *main*; forked children get their default handlers back."""
        self._main = main
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not loop.add_signal_handler(): a second signal must work while the event loop is stuck.
            signal.signal(number, self.handle_exit)
        signal.signal(signal.SIGHUP, self._handle_hangup)

        def forget() -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGPROF):
                signal.signal(number, signal.SIG_DFL)

        os.register_at_fork(after_in_child=forget)
        threading.Thread(target=self._enforce_deadline, args=(main.get_loop(),), name="deadline", daemon=True).start()

    def keep_from_children(self, sockets: Callable[[], Iterable[socket.socket]]) -> None:
        """Take *sockets* away from forked children: a port is in use, and a connection open, while anybody has it."""

        def take_away() -> None:
            # Not close(): the event loop's objects, which the child has too, must not close another's descriptor.
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (sock.fileno() for sock in sockets()):
                if number >= 0:
                    os.dup2(nothing, number, inheritable=False)
            os.close(nothing)

        os.register_at_fork(after_in_child=take_away)

    def handle_exit(self, number: int, _frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends the process at once. This runs as a signal handler."""
        if self.signal_status:
            exit_now(128 + number)
        self.signal_status = 128 + number
        name, at_once = signal.Signals(number).name, number == signal.SIGINT
        # The deadline holds even if the event loop is stuck and never runs the call.
        self.set_deadline(at_once)
        self._call(lambda: self.stop(name, at_once=at_once))

    def _handle_hangup(self, number: int, frame: FrameType | None) -> None:
        """Reload the secrets, or drain if the terminal that this process was started from has been closed."""
        if self._had_terminal and not _has_terminal():
            self.handle_exit(number, frame)
        else:
            self._call(self.hangup.set)

    def _call(self, callback: Callable[[], None]) -> None:
        if self._main is not None and not (loop := self._main.get_loop()).is_closed():
            # Not in the context of the request that the signal interrupts: its ids would be on the lines of the stop.
            loop.call_soon_threadsafe(callback, context=contextvars.Context())

    def _enforce_deadline(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the process when its time is over, whatever threads, tasks and exit handlers still wait for."""
        self._stopping.get()
        time.sleep(max(0.0, self._deadline - time.monotonic()))
        try:
            tasks = asyncio.all_tasks(loop)
            threads = [thread for thread in threading.enumerate() if not thread.daemon and thread.ident is not None]
            log.error(
                "stop timed out",
                requests=self.requests(),
                tasks=dict(Counter(str(where(await_chain(task))) for task in tasks)),
                threads={thread.name: where(thread_stack(thread.ident or 0)) for thread in threads},
                hint="what is named here was cut off",
            )
        finally:
            exit_now(self.status or 1)


async def run_lifespan(app: ASGIApp, lifecycle: Lifecycle, scope: Scope, receive: Receive, send: Send) -> None:
    """Run *app* through ASGI's lifespan; if that fails or ends too early, stop the service, which can't go on."""
    failure: str | None = None

    async def note(message: Message) -> None:
        nonlocal failure
        if message["type"].endswith(".failed"):
            failure = message.get("message", "")
        await send(message)

    try:
        await app(scope, receive, note)
        if failure is not None or not lifecycle.draining.is_set():
            raise RuntimeError(failure or "the lifespan has ended, but nobody asked for it")
    except BaseException as error:
        # A start that was called off is cancelled at the very end.
        if (event := EVENTS.get(lifecycle.state)) is not None:
            get_logger("server").critical(event, exc_info=error)
            lifecycle.stop(event, status=exit_status(error))
        raise


def exit_now(status: int) -> None:
    """End this process and its children, without waiting for anything but what is to be written, and not long."""
    # Whatever goes wrong in it: the process must end.
    with contextlib.suppress(Exception):
        # What was printed without a line end; whoever reads it may not do so any more.
        wait({run_in_thread("print", sys.stdout.flush)}, FLUSH_TIMEOUT_S)
    flush(FLUSH_TIMEOUT_S)
    # Children last: the main thread may wait for them in an exit handler, and then ends with another status.
    with contextlib.suppress(Exception):
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()
    os._exit(status)


def exit_status(error: BaseException) -> int:
    """Return the status that Python ends with after *error*."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal; there is none any more once it was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
