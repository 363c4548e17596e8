"""Contract, section 7: signals and forks at the edges of a life, and that a life goes one way."""

from __future__ import annotations

import sys

from my_service.chassis.lifecycle import Lifecycle, State

from .start import Start

AFTER_THE_LOOP = """
import asyncio, signal
from my_service.chassis.lifecycle import Lifecycle

loop = asyncio.new_event_loop()
Lifecycle(timeout_s=60).install(loop.create_task(asyncio.sleep(0)))
loop.close()
signal.raise_signal(signal.SIGHUP)
signal.raise_signal(signal.SIGTERM)
print("still here")
signal.raise_signal(signal.SIGTERM)
"""

FORKED = """
import os, socket
from my_service.chassis.lifecycle import Lifecycle

gone, (mine, others) = socket.socket(), socket.socketpair()
gone.close()
Lifecycle().keep_from_children(lambda: [gone, mine])
if (child := os.fork()) == 0:
    # To this child it is /dev/null, and its own children have nothing of that either.
    is_null = os.path.samestat(os.fstat(mine.fileno()), os.stat(os.devnull))
    os._exit(0 if is_null and not os.get_inheritable(mine.fileno()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
mine.sendall(b"open in the parent")
print(others.recv(100).decode())
"""


def test_a_life_never_goes_back() -> None:
    lifecycle, seen = Lifecycle(), list[State]()
    lifecycle.observe(seen.append)
    for state in (State.READY, State.READY, State.DRAINING, State.READY, State.STOPPED, State.STARTING):
        lifecycle.advance(state)
    assert seen == [State.READY, State.DRAINING, State.STOPPED]
    assert lifecycle.state is State.STOPPED


def test_a_signal_after_the_event_loop_has_ended_is_heard_and_a_second_one_ends_the_process(
    start: Start,
) -> None:
    process = start.run([sys.executable, "-c", AFTER_THE_LOOP], {})
    assert process.wait() == 128 + 15
    assert process.said() == "still here\n"


def test_a_forked_child_loses_what_is_open_and_nothing_else(start: Start) -> None:
    process = start.run([sys.executable, "-c", FORKED], {})
    assert process.wait() == 0, process.said()
    assert process.said() == "0\nopen in the parent\n"
