"""Contract, section 7: the process is gone in time whatever hangs, and its status says how that went."""

from __future__ import annotations

import os
import pty
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from kit.service import Asking, Service, answers, free_ports, rest, wait_for

from .incidents import ALLOWED_S, cut_off, ended, events, in_flight, launch, stopped
from .start import SERVICE, Start


@pytest.mark.parametrize(
    "path",
    [
        *("/thread_behind", "/task_behind", "/executor", "/thread", "/at_exit", "/task/deaf", "/task/hang"),
        *("/pool?method=fork", "/pool?method=spawn", "/pool?method=forkserver"),
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


@pytest.mark.parametrize("path", ["/endless", "/nap?s=60", "/block?s=60"])
def test_requests_that_go_on_are_cut_off_in_time_and_counted(start: Start, path: str) -> None:
    process = launch(start).ready()
    requests = [Asking(process, path) for _ in range(1 if "block" in path else 3)]
    in_flight(process, len(requests))
    assert stopped(process) == 1, process.said()
    lines = process.lines("requests cut off") or process.lines("stop timed out")
    assert [line["requests"] for line in lines] == [len(requests)], process.said()
    for request in requests:
        request.join()


@pytest.mark.parametrize("point", ["STOP", "CLOSE"])
@pytest.mark.parametrize("kind", ["hang", "deaf", "block"])
def test_an_end_that_hangs_is_cut_off_in_time(start: Start, point: str, kind: str) -> None:
    process = launch(start, **{f"APP_INCIDENT_{point}": kind}).ready()
    assert stopped(process) == 1, process.said()
    said = {"shutdown timed out", "closing timed out", "stop timed out"} & set(events(process))
    assert said, process.said()


@pytest.mark.parametrize(("kind", "status"), [("hang", 0), ("deaf", 1), ("block", 1)])
def test_a_stop_in_a_start_up_that_hangs_ends_it_in_time(start: Start, kind: str, status: int) -> None:
    process = launch(start, APP_INCIDENT_START=kind, APP_DRAIN_DELAY="0")
    process.line("misbehaving")
    process.signal(signal.SIGTERM)
    assert ended(process) == status, process.said()
    assert "ready" not in events(process)
    errors = [line["event"] for line in process.lines() if line["level"] in ("error", "critical")]
    assert set(errors) <= {"websockets unavailable", "stop timed out"}


def test_a_stop_while_services_are_registered_ends_it_in_time(start: Start) -> None:
    process = launch(start, APP_INCIDENT_REGISTER="block")
    process.line("misbehaving")
    process.signal(signal.SIGTERM)
    assert ended(process) == 1
    assert cut_off(process), process.said()


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
    assert ended(process, 10) == 128 + signal.SIGINT
    request.join()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/task/exit0", 0), ("/task/exit3", 3), ("/task/exit", 0), ("/task/exitwith a text", 1)),
        *(("/task/interrupt", 130), ("/callback/4", 4), ("/callback/0", 0)),
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
    assert "misbehave" in line["exception"] or "leave" in line["exception"]
    order = [
        event
        for event in events(process)
        if event in ("draining", "lifespan closing", "registry closing", "stopped")
    ]
    assert order == ["draining", "lifespan closing", "registry closing", "stopped"]


def test_an_exit_in_a_thread_ends_the_thread_alone(start: Start) -> None:
    process = launch(start).ready()
    assert process.ask("/thread_exit").status == 200
    assert process.ask("/nap").status == 200
    assert stopped(process) == 0
    assert not [line for line in process.lines() if "SystemExit" in str(line)], process.said()


@pytest.mark.parametrize(
    ("kind", "status"), [("exit0", 0), ("exit3", 3), ("exittext", 1), ("raise", 1), ("interrupt", 130)]
)
@pytest.mark.parametrize("point", ["START", "TASK", "STOP"])
def test_an_exit_in_the_lifespan_is_logged_and_keeps_its_status(
    start: Start, point: str, kind: str, status: int
) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="5", **{f"APP_INCIDENT_{point}": kind})
    if point != "START":
        process.ready()
    if point == "STOP":
        process.signal(signal.SIGTERM)
    assert ended(process, 20) == status, process.said()
    event = {"START": "startup failed", "TASK": "lifespan failed", "STOP": "shutdown failed"}[point]
    assert "misbehave" in process.line(event)["exception"]
    assert process.line("stopped")["status"] == status
    assert "registry closing" in events(process)


@pytest.mark.parametrize("kind", ["raise", "exit3"])
def test_a_lifespan_that_hides_why_it_has_ended_ends_the_service_too(start: Start, kind: str) -> None:
    process = launch(start, APP_INCIDENT_TASK=kind, APP_INCIDENT_SUPPRESS="yes").ready()
    assert ended(process, 20) == (1 if kind == "raise" else 3), process.said()
    assert process.line("lifespan failed")["level"] == "critical"
    assert {"hidden", "draining", "stopped"} <= set(events(process))


@pytest.mark.parametrize("streams", [1, 20])
def test_streams_that_end_by_the_drain_are_no_failure(start: Start, streams: int) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    requests = [Asking(process, "/polite") for _ in range(streams)]
    in_flight(process, streams)
    process.signal(signal.SIGTERM)
    assert ended(process, 15) == 0, process.said()
    for request in requests:
        request.join()
        assert request.answer is not None
        assert (request.answer.status, request.answer.body.replace(b"tick\n", b"")) == (200, b"")


def leave(client: socket.socket, by: str) -> None:
    if by == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


GET = b"GET /nap?s=30 HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /nap?s=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("by", ["end", "reset"])
@pytest.mark.parametrize("sent", [GET, POST + b"abc", POST + b"a"], ids=["get", "post", "half"])
def test_a_request_whose_client_has_left_holds_nothing(start: Start, by: str, sent: bytes) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    client = process.dial()
    client.sendall(sent)
    in_flight(process, 1)
    time.sleep(0.3)
    leave(client, by)
    in_flight(process, 0)
    assert process.request_line("/nap")["status"] == 499
    process.signal(signal.SIGTERM)
    assert ended(process, 12) == 0, process.said()
    assert not process.lines("requests cut off")
    assert not [line for line in process.lines() if line["level"] == "critical" or "exception" in line]


@pytest.mark.parametrize("by", ["end", "reset"])
def test_a_client_that_leaves_within_its_answer_holds_nothing(start: Start, by: str) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    client = process.dial()
    client.sendall(GET.replace(b"/nap?s=30", b"/endless"))
    while b"tick" not in client.recv(65536):
        pass
    leave(client, by)
    in_flight(process, 0)
    assert process.request_line("/endless")["status"] == 200
    process.signal(signal.SIGTERM)
    assert ended(process, 12) == 0, process.said()
    assert not [line for line in process.lines() if line["level"] == "critical" or "exception" in line]


def test_without_time_for_a_drain_it_ends_at_once(start: Start) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="0").ready()
    request = Asking(process, "/nap?s=60")
    in_flight(process, 1)
    process.signal(signal.SIGTERM)
    assert ended(process, 10) == 1
    assert cut_off(process) == 1
    request.join()


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
        kept.sock.settimeout(10)
        assert kept.sock.recv(1) == b"", "a child holds the connection of a client"
        again = launch(start, **ports).ready()
        assert again.ask("/nap").status == 200
        os.kill(child, signal.SIGTERM)
        assert again.ask("/nap").status == 200
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
        wait_for(lambda: not accepts(process), "a closed listener", 10)
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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_is_cut_off_leaves_no_children_behind(start: Start, method: str) -> None:
    process = launch(start).ready()
    child = int(process.ask(f"/pool?method={method}").text)
    assert stopped(process) == 1
    wait_for(lambda: not is_alive(child), f"the end of the child {child}", 10)


def is_alive(number: int) -> bool:
    """Return whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stop_takes_its_delay_and_not_longer(start: Start) -> None:
    process = launch(start, APP_DRAIN_DELAY="2").ready()
    process.ask("/task/deaf")
    began = process.signal(signal.SIGTERM)
    time.sleep(1)
    assert process.ask("/nap").headers["connection"] == "close"
    assert ended(process, ALLOWED_S + 2) == 1
    assert time.monotonic() - began >= 3


@pytest.mark.parametrize("uncertain", [b"GET /nap HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_client_that_is_answered_and_stays_does_not_hold_the_stop(start: Start, uncertain: bytes) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    with process.dial() as client:
        client.sendall(uncertain)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        process.signal(signal.SIGTERM)
        assert ended(process, 12) == 0
        assert rest(client) == b""
