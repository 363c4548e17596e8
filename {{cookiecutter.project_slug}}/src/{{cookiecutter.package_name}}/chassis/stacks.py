"""Threads and tasks: a function on a thread of its own, and where every thread and task is.

Stacks are read from other threads, so this works while the event loop is stuck. They hold places only (file, line,
function), never a value and never source code.
"""

import asyncio
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Stack = tuple[str, ...]
ASYNCIO = re.compile(r"[/\\]asyncio[/\\]\w+\.py:")


def run_in_thread(name: str, function: Callable[[], T]) -> Future[T]:
    """Run *function* on a new daemon thread; the future has the RuntimeError if the machine has none left.

    On a pool's thread, a function that hangs would hold the pool and the exit.
    """
    future: Future[T] = Future()
    # A thread can't be cancelled, so its future must not be either.
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        future.set_exception(error)
    return future


def thread_stack(thread: int) -> Stack:
    """Return the stack of the thread with the id *thread*, innermost place last; empty if it has ended."""
    if (innermost := sys._current_frames().get(thread)) is None:
        return ()
    # Not from a generator: CPython would keep 2,000 such tuples of each length, and this is done ten times a second.
    return tuple([_place(frame) for frame, _ in traceback.walk_stack(innermost)][::-1])


def await_chain(task: asyncio.Task[Any]) -> Stack:
    """Return what *task* waits for, innermost place last; of a task that runs, where it was awaited last."""
    places: list[str] = []
    waiting: Any = task.get_coro()
    while (frame := _first(waiting, "cr_frame", "gi_frame", "ag_frame")) is not None:
        places.append(_place(frame))
        waiting = _first(waiting, "cr_await", "gi_yieldfrom", "ag_await")
    return tuple(places)


def where(stack: Stack) -> str | None:
    """Return the innermost place of *stack* outside asyncio: what the service waits for, not by which means."""
    return next((place for place in reversed(stack) if not ASYNCIO.search(place)), None)


def describe(loop: asyncio.AbstractEventLoop | None) -> str:
    """Return all threads, and all tasks of *loop*, as text; identical stacks once, with their number."""
    # The threads of a pool differ by a number at the end of their names.
    names = {thread.ident: "thread " + re.sub(r"_\d+$", "", thread.name) for thread in threading.enumerate()}
    others = sys._current_frames().keys() - {threading.get_ident()}
    threads = [(names.get(ident, "thread not started by Python"), thread_stack(ident)) for ident in others]
    tasks = [("task", await_chain(task)) for task in asyncio.all_tasks(loop)] if loop is not None else []
    parts = [f"{len(threads)} threads; {len(tasks)} tasks\n"]
    for (title, stack), count in Counter([*threads, *tasks]).most_common():
        parts.append("\n  ".join([f"{count} x {title}" if count > 1 else title, *stack]) + "\n")
    return "\n".join(parts)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


def _first(waiting: Any, *names: str) -> Any:
    """Return the first attribute of *names* that is set; coroutines and generators name the same differently."""
    return next((value for name in names if (value := getattr(waiting, name, None)) is not None), None)
