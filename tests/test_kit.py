"""The tests' own library: tools that are missing, broken or too old, and how the tests are laid out."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.project import ROOT, Renders
from kit.service import free_ports
from kit.tools import TOOLS, Tool, look, tool

MOST_LINES = 500
SOURCES = sorted(path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is all of the PATH, in which a test may put programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WITHOUT_ENGINE", raising=False)
    look.cache_clear()
    yield tmp_path
    look.cache_clear()


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


CASES = {
    "missing": ("haproxy", None, "haproxy is missing: no program haproxy"),
    "too old": (
        "haproxy",
        "echo HAProxy version 2.4.22",
        "haproxy is too old: it is 2.4.22, and 2.6",
    ),
    "no engine": ("docker", "echo no daemon >&2; exit 1", "says no daemon"),
    "no plugin": ("docker", "exit 1", "docker compose does not work"),
    "broken": ("jq", "exit 1", "jq does not work: `jq --version` says"),
    "no version": ("git", "echo hello", "says no version"),
    "no file": ("libfaketime-of-another-name", None, "is missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tool_that_does_not_work_is_a_skip_with_its_reason(
    programs: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, script, reason = CASES[case]
    if script is not None:
        put(programs, name, script)
    wanted = "docker compose" if case == "no plugin" else name
    monkeypatch.delenv("REQUIRE_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        tool(wanted)
    assert reason in str(skipped.value)
    monkeypatch.setenv("REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception) as failed:
        tool(wanted)
    assert reason in str(failed.value)


def test_half_of_a_tool_off_the_path_is_none_either(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (f"{programs.relative_to('/')}/server",)
    monkeypatch.setitem(TOOLS, "half", Tool(files=files, beside=("setup",)))
    reasons = []
    for name, script in (("server", "echo broken; exit 1"), ("setup", ""), ("server", "")):
        put(programs, name, script)
        look.cache_clear()
        reasons.append(look("half"))
    assert reasons == [
        f"half does not work: {programs}/server is there without setup",
        "half does not work: `server --version` says broken",
        programs / "server",
    ]


def test_a_tool_that_works_is_its_path(programs: Path) -> None:
    put(programs, "haproxy", "echo HAProxy version 2.10.1-1 2026/10/17")
    assert tool("haproxy") == programs / "haproxy"


def test_two_test_runs_do_not_find_the_same_ports() -> None:
    """Nothing listens there yet, and with HAProxy two would share a port without noticing."""
    mine = free_ports(150, last=21000)
    ask = "from kit.service import free_ports; print(*free_ports(150, last=21000))"
    done = subprocess.run(
        (sys.executable, "-c", ask), cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert not set(mine) & set(map(int, done.stdout.split()))


def test_a_render_is_made_once_for_the_same_answers(renders: Renders) -> None:
    one = renders.get()
    assert renders.get(web_framework="starlette", deploy_to="kubernetes") == one
    assert renders.get(web_framework="fastapi") != one


def test_no_file_of_the_tests_is_long() -> None:
    counted = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert len(counted) > 50
    assert not {name: count for name, count in counted.items() if count > MOST_LINES}


def test_no_test_imports_a_test() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            found += [
                f"{path.name}: {name}"
                for name in names
                if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
            ]
    assert not found


def test_the_contract_says_which_tests_show_it() -> None:
    done = subprocess.run((sys.executable, ROOT / "scripts" / "promises.py"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
