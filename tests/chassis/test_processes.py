"""Contract, section 7: threads, tasks, child processes and terminals do not keep a process, nor end it."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from kit.service import Asking, Service, answers, free_ports, wait_for

from .incidents import cut_off, ended, events, launch, stopped
from .start import SERVICE, Start

# The main thread waits for such a child, and ends the process with another status if it may go on. Coverage
# lets it: it writes its data between the end of the child and that of the process.
unmeasured = pytest.mark.skipif(
    "COVERAGE_PROCESS_CONFIG" in os.environ, reason="coverage delays the end of the process"
)
PROCESSES = [
    pytest.param(f"/{kind}?method={method}", marks=unmeasured)
    for kind in ("process", "pool")
    for method in ("fork", "spawn", "forkserver")
]


@pytest.mark.parametrize(
    "path",
    [
        *("/thread_behind", "/task_behind", "/executor", "/thread", "/at_exit", "/task/deaf", "/task/hang"),
        *PROCESSES,
    ],
)
def test_work_that_goes_on_is_cut_off_in_time_and_counted(start: Start, path: str) -> None:
    process = launch(start).ready()
    assert process.ask(path).status == 200
    status = stopped(process)
    if path == "/task/hang":
        # A task that ends when it is cancelled is nothing that was cut off.
        assert (status, cut_off(process)) == (0, 0)
    else:
        assert status == 1, process.said()
        assert cut_off(process), process.said()
    assert "draining" in events(process)


def test_the_exit_is_bounded_though_what_is_cut_off_can_not_be_described(start: Start) -> None:
    process = launch(start).ready()
    assert process.ask("/odd_task").status == 200
    request = Asking(process, "/block?s=60")
    process.line("misbehaving")
    assert stopped(process) == 1, process.said()
    request.join()


@pytest.mark.parametrize(
    ("path", "sign"), [("/at_exit", "stopped"), ("/thread", "stopped"), ("/block?s=60", "")]
)
def test_a_second_signal_ends_at_once_what_would_still_hang(start: Start, path: str, sign: str) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="60").ready()
    request = Asking(process, path)
    if sign:
        request.join()
    else:
        process.line("misbehaving")
    process.signal(signal.SIGTERM)
    if sign:
        process.line(sign)
    time.sleep(0.5)
    process.signal(signal.SIGINT)
    # Of two that wait for a process, the kernel and Python let the lower number go first.
    second = {signal.SIGINT} if sign else {signal.SIGINT, signal.SIGTERM}
    assert ended(process, 30) - 128 in second
    request.join()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/task/exit0", 0), ("/task/exit3", 3), ("/task/exit", 0), ("/task/exitwith a text", 1)),
        *(("/task/interrupt", 130), ("/callback/4", 4), ("/callback/0", 0), ("/task/stop", 1)),
    ],
)
def test_an_exit_in_the_event_loop_drains_and_keeps_its_status(start: Start, path: str, status: int) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    slow = Asking(process, "/nap?s=1")
    process.line("napping")
    process.ask(path.replace(" ", "%20"))
    assert ended(process, 20) == status, process.said()
    slow.join()
    assert slow.answer is not None, "a request in flight got no answer"
    assert slow.answer.status == 200
    line = process.line("exit requested")
    assert (line["level"], line["status"]) == ("critical", status)
    assert path.removeprefix("/task/exit") in line["exception"] or "with a text" not in path
    assert re.search("misbehave|leave|Event loop stopped", line["exception"])
    order = [
        event
        for event in events(process)
        if event in ("draining", "lifespan closing", "registry closing", "stopped")
    ]
    assert order == ["draining", "lifespan closing", "registry closing", "stopped"]


def test_an_observer_of_the_teams_that_fails_is_logged_and_holds_nothing_up(start: Start) -> None:
    process = launch(start, APP_INCIDENT_REGISTER="observe").ready()
    assert process.status("/-/ready", "admin") == 200
    assert stopped(process) == 0, process.said()
    assert [line["state"] for line in process.lines("observer failed")] == ["ready", "draining", "stopped"]
    assert "IndexError" in process.line("observer failed")["exception"]
    assert {"lifespan closing", "registry closing"} <= set(events(process))


def test_an_exit_in_a_thread_ends_the_thread_alone(start: Start) -> None:
    process = launch(start).ready()
    assert process.ask("/thread_exit").status == 200
    assert process.ask("/nap").status == 200
    assert stopped(process) == 0
    assert not [line for line in process.lines() if "SystemExit" in str(line)], process.said()


class Terminal:
    """A terminal of its own, with the service started from it; its lines are in a file."""

    def __init__(self, start: Start, folder: Path, *prefix: str, ignore: bool = False) -> None:
        self._out = folder / "out"
        env = start.environment({"APP_LOG_FORMAT": "json", "APP_DRAIN_TIMEOUT": "1"})
        self.child, self.screen = pty.fork()
        if not self.child:
            os.dup2(os.open(self._out, os.O_CREAT | os.O_WRONLY), 1)
            # Whoever runs the tests may ignore it, and that is inherited.
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore else signal.SIG_DFL)
            os.execvpe([*prefix, *SERVICE][0], [*prefix, *SERVICE], env)
        self.has_line("ready")
        children = Path(f"/proc/{self.child}/task/{self.child}/children").read_text().split()
        self.service = int(children[0]) if prefix else self.child

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if is_alive(self.service):
            os.kill(self.service, signal.SIGKILL)

    def has_line(self, event: str) -> None:
        wait_for(lambda: self._out.exists() and f'"event":"{event}"' in self._out.read_text(), event)

    @property
    def is_ready(self) -> bool:
        port = self._out.read_text().partition('"admin":"127.0.0.1:')[2].partition('"')[0]
        return answers(int(port), "/-/ready")


def test_a_closed_terminal_ends_the_service_and_any_other_hangup_reloads(
    start: Start, tmp_path: Path
) -> None:
    with Terminal(start, tmp_path) as terminal:
        os.kill(terminal.service, signal.SIGHUP)
        terminal.has_line("secrets unchanged")
        assert terminal.is_ready
        os.close(terminal.screen)
        terminal.has_line("stopped")
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.child, 0)[1]) == 0


def test_a_service_in_a_session_of_its_own_outlives_the_terminal(start: Start, tmp_path: Path) -> None:
    with Terminal(start, tmp_path, "sh", "-c", 'setsid "$@" & wait', "sh") as terminal:
        os.close(terminal.screen)
        os.waitpid(terminal.child, 0)
        os.kill(terminal.service, signal.SIGHUP)
        terminal.has_line("secrets unchanged")
        assert terminal.is_ready


def test_a_service_under_nohup_outlives_the_terminal(start: Start, tmp_path: Path) -> None:
    with Terminal(start, tmp_path, ignore=True) as terminal:
        os.close(terminal.screen)
        terminal.has_line("secrets unchanged")
        assert terminal.is_ready
        os.kill(terminal.service, signal.SIGTERM)
        terminal.has_line("stopped")
        os.waitpid(terminal.child, 0)


@pytest.mark.parametrize("method", ["fork", "fork&thread=yes", "spawn", "forkserver"])
def test_a_child_process_can_be_terminated(start: Start, method: str) -> None:
    process = launch(start).ready()
    assert process.ask(f"/child?method={method}&s=1").text == str(-signal.SIGTERM)
    assert process.ask("/nap").status == 200


@pytest.mark.parametrize("path", ["/fork", "/pool?method=fork"])
def test_a_forked_child_holds_neither_ports_nor_clients(start: Start, path: str) -> None:
    first, second = map(str, free_ports(2))
    ports = {"APP_HTTP_PORT": first, "APP_ADMIN_PORT": second}
    process = launch(start, **ports).ready()
    kept = process.connect()
    process.ask("/nap", on=kept)
    child = int(process.ask(path).text)
    try:
        assert process.ask("/nap", on=kept).status == 200
        process.kill()
        assert kept.sock is not None
        kept.sock.settimeout(60)
        assert kept.sock.recv(1) == b"", "a child holds the connection of a client"
        again = launch(start, **ports).ready()
        assert again.ask("/nap").status == 200
        os.kill(child, signal.SIGTERM)
        assert again.ask("/nap").status == 200
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_has_none_of_the_services_signal_handlers(start: Start) -> None:
    process = launch(start).ready()
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGPROF)

    def caught(pid: int) -> list[signal.Signals]:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        mask = int(status["SigCgt"], 16)
        return [each for each in wanted if mask >> (each - 1) & 1]

    wait_for(lambda: len(caught(process.pid)) == len(wanted), "the service's handlers")
    child = int(process.ask("/fork").text)
    try:
        # It takes them off as the first thing that it does.
        wait_for(lambda: not caught(child), "a child without handlers")
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_listener_that_a_child_could_hold_is_closed_by_the_drain(start: Start) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    child = int(process.ask("/fork").text)
    try:
        slow = Asking(process, "/nap?s=2")
        process.line("napping")
        process.signal(signal.SIGTERM)
        process.line("draining")
        wait_for(lambda: not accepts(process), "a closed listener")
        slow.join()
        assert slow.answer is not None
        assert slow.answer.status == 200
        assert ended(process) == 0
    finally:
        os.kill(child, signal.SIGKILL)


def accepts(process: Service) -> bool:
    try:
        process.dial().close()
    except ConnectionRefusedError:
        return False
    return True


@unmeasured
@pytest.mark.parametrize(
    "path", ["/pool?method=fork", "/pool?method=spawn", "/process?method=fork", "/process?method=spawn"]
)
def test_what_is_cut_off_leaves_no_children_behind(start: Start, path: str) -> None:
    process = launch(start).ready()
    child = int(process.ask(path).text)
    assert stopped(process) == 1
    wait_for(lambda: not is_alive(child), f"the end of the child {child}")


LAST = """
import multiprocessing, time
from my_service.chassis.lifecycle import exit_now

# Forked, since there is no module that a new interpreter could import.
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
print(child.pid, end="")
exit_now(3)
"""


def test_the_last_step_ends_children_and_writes_what_was_printed(start: Start) -> None:
    process = start.run([sys.executable, "-c", LAST], {})
    assert process.wait() == 3
    child = int(process.said())
    wait_for(lambda: not is_alive(child), f"the end of the child {child}")


def is_alive(number: int) -> bool:
    """Return whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
