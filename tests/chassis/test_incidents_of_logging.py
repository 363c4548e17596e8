"""Contract, section 4: whatever libraries, children and odd values do, all lines come, and in one form."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kit.service import Service, answers, ask, free_ports, wait_for

from .incidents import launch, stopped
from .start import Start, write_secrets

CHANGES = [
    *(
        "alembic",
        "alembic-twice",
        "dict",
        "dict-without-root",
        "basic",
        "removed",
        "cleared",
        "level",
        "disable",
    ),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The program with the incidents, for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("incidents")
    with Start(folder, write_secrets(folder / "secrets")) as start:
        yield launch(start).ready()


def json_lines(process: Service) -> list[dict[str, Any]]:
    """Return the lines that are JSON, and let print have lines of its own."""
    whole = process.out.read_text().rpartition("\n")[0].splitlines()
    assert {line for line in whole if not line.startswith("{")} <= {"printed"}, process.said()
    return [json.loads(line) for line in whole if line.startswith("{")]


def seen(process: Service, logger: str, *events: str, after: int = 0) -> list[dict[str, Any]]:
    """Wait until a logger has lines of all these events, behind the first *after* lines; return them."""

    def found() -> list[dict[str, Any]]:
        lines = [
            line
            for line in json_lines(process)[after:]
            if line["logger"] == logger and line["event"] in events
        ]
        return lines if {line["event"] for line in lines} == set(events) else []

    return wait_for(found, f"{events} of {logger}: {process.said()}")


def has_all(process: Service, when: str, after: int = 0) -> None:
    seen(process, "lib", f"library {when}", after=after)
    seen(process, "lib.noisy", f"child of the library {when}", after=after)
    seen(process, "incidents", f"own {when}", after=after)
    seen(process, f"new.{when}", f"new {when}", after=after)


@pytest.mark.parametrize("kind", CHANGES)
def test_who_reconfigures_logging_silences_nothing(start: Start, kind: str) -> None:
    """Neither a route nor a thread, for the first time or again."""
    process = launch(start).ready()
    for where in ("", "", "?thread", "?thread"):
        before = len(json_lines(process))
        assert process.ask(f"/configure/{kind}{where}").status == 200
        has_all(process, "at once", before)
        before = len(json_lines(process))
        assert process.ask("/says").status == 200
        has_all(process, "later", before)
    wait_for(lambda: len(process.lines("request")) == 8, "the lines of all requests", 10)
    assert process.line("logging restored")["level"] == "warning"
    levels = process.ask("/-/log-level", port="admin").json()
    assert "info" in str(levels)
    assert stopped(process) == 0
    assert [line["event"] for line in process.lines() if line["logger"] in ("lifecycle", "service")][-2:] == [
        *("draining", "stopped")
    ]
    assert process.err.read_text() == ""


@pytest.mark.parametrize("kind", ["alone", "structlog", "structlog-reset"])
def test_what_a_library_configures_for_itself_silences_nothing(start: Start, kind: str) -> None:
    process = launch(start).ready()
    assert process.ask(f"/configure/{kind}").status == 200
    has_all(process, "at once")
    assert stopped(process) == 0
    assert {"draining", "stopped"} <= {line["event"] for line in json_lines(process)}
    assert process.err.read_text() == ""


@pytest.mark.parametrize("point", ["START", "STOP"])
@pytest.mark.parametrize("kind", ["alembic", "dict", "basic"])
def test_migrations_in_the_lifespan_silence_nothing(start: Start, kind: str, point: str) -> None:
    process = launch(start, **{f"APP_INCIDENT_{point}": kind}).ready()
    process.ask("/says")
    has_all(process, "later")
    assert stopped(process) == 0
    assert process.lines("stopped")
    assert process.lines("request")
    assert process.lines("logging restored")
    assert process.err.read_text() == ""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_log_as_their_parent_does(start: Start, method: str) -> None:
    process = launch(start, APP_LOG_LEVELS="lib.noisy=debug, other=error").ready()
    assert process.ask(f"/process/{method}").text == "0"
    assert seen(process, "child", "structlog")[0]["why"] == "test"
    assert seen(process, "lib", "standard library")[0]["level"] == "warning"
    assert seen(process, "lib.noisy", "noise")[0]["level"] == "debug"
    assert "printed" in process.out.read_text().splitlines()
    assert process.err.read_text() == ""


# Children do not import such a main module, nor that of `python -m my_service`.
MAIN = """
import os, sys
from apps.incidents import service
from my_service.chassis import run
sys.exit(run(service(), [], os.environ))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_log_as_their_parent_does_whatever_the_main_module_is(start: Start, method: str) -> None:
    process = start.run([sys.executable, "-c", MAIN], {"APP_LOG_LEVELS": "lib=error"}).ready()
    assert process.ask(f"/process/{method}").text == "0"
    seen(process, "child", "structlog")
    assert not [line for line in json_lines(process) if line["logger"].startswith("lib")]
    assert process.err.read_text() == ""


def test_a_field_never_takes_the_place_of_what_a_line_begins_with(service: Service) -> None:
    request_id = service.ask("/clash").headers["x-request-id"]
    for logger in ("lib", "own"):
        [line] = seen(service, logger, "the real message")
        assert (line["level"], line["event"]) == ("warning", "the real message")
        assert line["timestamp"] != "mine"
        assert (line["level_"], line["logger_"], line["timestamp_"]) == ("mine", "mine", "mine")
        assert (line["request_id"], line["request_id_"]) == (request_id, "mine")
    assert seen(service, "lib", "the real message")[0]["event_"] == "mine"
    assert seen(service, "own", "the real message")[0]["message"] == "mine"


SHOWN = {
    "dataclass": "Account(user='ada')",
    "attrs": "Attrs(user='ada')",
    "struct": "Struct()",
    "pydantic": "Pydantic(user='ada')",
    "list": ["Account(user='ada')", ["Attrs(user='ada')"]],
    "dict": {"account": "Account(user='ada')", "3": "Struct()"},
    "key": {"ada": 1, "(1, 2)": 2, "None": 3},
    "enum": "red",
    "int_enum": 3,
    "hidden_enum": "<Key>",
    "named_tuple": "Point(x=1, y=2)",
    "hidden_tuple": "Login()",
    "text": "<text>",
    "mapping": "Map()",
    "counter": "Counter({'a': 2, 'b': 1})",
    "set": "{1}",
    "bytes": "b'\\xff'",
    "exception": "ValueError('no value')",
    "nan": ["nan", "inf"],
    "huge": 10**30,
    "surrogate": "\ud800",
    "broken": "<Broken>",
}


@pytest.mark.parametrize(("kind", "value"), SHOWN.items())
def test_a_field_is_json_or_its_repr(start: Start, service: Service, kind: str, value: object) -> None:
    request_id = service.ask(f"/field/{kind}").headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        return [
            line for line in json_lines(service) if line.get("request_id") == request_id and "value" in line
        ]

    assert [line["value"] for line in wait_for(lambda: lines() if len(lines()) == 2 else [])] == [
        value,
        value,
    ]


def test_what_a_repr_hides_is_in_no_line_of_any_format(start: Start, service: Service) -> None:
    console, port = for_people(start)
    for process, at in ((service, service.port()), (console, port)):
        for kind in ("nested", *SHOWN):
            assert ask(at, f"/field/{kind}").status == 200
        # What the service itself puts into its messages is not hidden: a text as an argument.
        said = process.said()
        assert "ada" in said
        assert "hunter2" not in said.replace("with an argument: hunter2", "")
        assert process.err.read_text() == ""


def for_people(start: Start) -> tuple[Service, int]:
    """Start a service whose lines are for people; return its port too, which those do not tell a program."""
    [port] = free_ports(1)
    process = launch(start, APP_LOG_FORMAT="console", APP_HTTP_PORT=str(port))
    wait_for(lambda: answers(port, "/-/ready") or not process.is_running, "readiness")
    assert process.is_running, process.said()
    return process, port


ODD = ("bad %d", "left over", "exc_info of a class", "rows", "bound", "keys", "the last")


def test_a_log_call_never_raises(service: Service) -> None:
    assert service.ask("/odd").status == 200
    seen(service, "incidents", "the last")
    for event in ODD:
        assert event in service.said()
    assert len([line for line in json_lines(service) if "bad %d" in line["event"]]) == 2
    assert seen(service, "incidents", "rows")[0]["stack"] == ["a"]
    assert service.err.read_text() == ""


def test_a_log_call_never_raises_on_a_terminal_either(start: Start) -> None:
    process, port = for_people(start)
    for path in ("/odd", "/clash", "/long"):
        assert ask(port, path).status == 200
    wait_for(lambda: "failed" in process.out.read_text())
    for event in (*ODD, "the real message", "long.nested", "lib.long"):
        assert event in process.said()
    assert process.err.read_text() == ""
    assert stopped(process) == 0


@pytest.mark.parametrize("kind", ["plain", "flush", "thread"])
def test_what_is_printed_arrives_at_once(service: Service, kind: str) -> None:
    before = service.out.read_text().count("printed\n")
    service.ask(f"/prints/{kind}")
    wait_for(lambda: service.out.read_text().count("printed\n") == before + 1, "what was printed", 10)


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "unfinished", "bytes"])
def test_what_is_printed_is_not_lost_by_the_end(start: Start, kind: str, status: int) -> None:
    process = launch(start).ready()
    process.ask(f"/prints/{kind}")
    if status:
        process.ask("/task_behind")
    assert stopped(process) == status
    assert process.out.read_text().count("printed") == 1


def test_libraries_that_log_urls_are_silent_unless_asked(start: Start) -> None:
    process = launch(start).ready()
    process.ask("/levels")
    for logger in ("httpx2", "httpx2._client", "httpcore2.http11", "urllib3.connectionpool"):
        seen(process, logger, "warning", "error")
        assert not [line for line in process.lines() if line["logger"] == logger and line["level"] == "info"]
    seen(process, "lib", "info")
    asked = launch(
        start, APP_LOG_LEVELS="httpx2=info,lib=error, lib.noisy=DEBUG,lib.structured=debug"
    ).ready()
    asked.ask("/levels")
    seen(asked, "httpx2", "info")
    seen(asked, "httpx2._client", "info")
    seen(asked, "lib.noisy", "debug")
    seen(asked, "lib.structured", "debug")
    assert {line["level"] for line in asked.lines() if line["logger"] == "lib"} == {"error"}
    assert "info" not in {line["level"] for line in asked.lines() if line["logger"].startswith("httpcore2")}


def test_a_quiet_library_is_not_louder_than_the_service(start: Start) -> None:
    for incident in ("", "alembic"):
        [port] = free_ports(1)
        settings = {"APP_HTTP_PORT": str(port), "APP_INCIDENT_START": incident}
        process = launch(start, APP_LOG_LEVEL="error", **settings)
        wait_for(partial(answers, port, "/levels"), "the lines of libraries")
        assert {line["level"] for line in json_lines(process)} == {"error"}


def test_a_line_that_is_too_long_is_cut_and_says_whose_it_is(start: Start) -> None:
    process = launch(start).ready()
    assert process.ask("/long").status == 200
    assert process.ask("/says").status == 200
    has_all(process, "later")
    lines = {line["logger"]: line for line in process.lines() if "long" in line["logger"]}
    assert lines.keys() == {"lib.long", "long.field", "long.fields", "long.error", "long.nested"}
    for line in lines.values():
        assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
        assert line["cut_bytes"] > 1_000_000
    assert lines["lib.long"]["event"].startswith("xxx")
    assert lines["long.field"]["short"] == "kept"
    assert (
        lines["long.error"]["exception"].startswith("ValueError")
        or "Error" in lines["long.error"]["exception"]
    )
    assert max(map(len, process.out.read_text().splitlines())) <= 256 * 1024
    assert not process.lines("log lines lost")
