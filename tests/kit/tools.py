"""The programs that tests need besides Python: where each is, and whether it works.

A tool that is missing, too old or does not answer is a reason to skip a test. Where REQUIRE_TOOLS=1 promises
that all tools are there, it is a failure.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

# An engine under load may take its time to say its version.
ASK_SECONDS = 60


@dataclass(frozen=True)
class Tool:
    """How a tool is found, and how one sees that it works.

    Args:
        program: Its program; the tool's own name if none is given.
        ask: Arguments with which the program ends well only when the tool works; none for what is no program.
        lowest: The lowest version that will do, if it matters; the program says its own when it is asked.
        why: What that version, or an answer, is needed for.
        files: Patterns below the root folder, for what is no program on the PATH; the first match counts.
        beside: What must be in the same folder.
    """

    program: str = ""
    ask: tuple[str, ...] = ("--version",)
    lowest: tuple[int, ...] = ()
    why: str = ""
    files: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


# Tools that are not here are programs that can be asked for their --version.
TOOLS: dict[str, Tool] = {
    "docker": Tool(
        ask=("version", "--format", "{{.Server.Version}}"), why="a client without an engine is none"
    ),
    # The client alone merges Compose files; it needs no engine.
    "docker compose": Tool(
        "docker", ("compose", "version"), (2, 24, 4), "the tag !override in Compose files"
    ),
    "docker buildx": Tool("docker", ("buildx", "version"), why="the workflows build with it"),
    "git": Tool(lowest=(2, 28), why="git init --initial-branch"),
    "haproxy": Tool(ask=("-v",), lowest=(2, 6), why="what docs/deploy-systemd.md asks for"),
    # Debian keeps it off the PATH, so that several versions can be there.
    "postgres": Tool(files=("usr/lib/postgresql/*/bin/postgres",), beside=("initdb", "psql")),
    # It needs the library of the Python that it was built for (Debian: libpython3.11).
    "rotel": Tool(files=(f"{sysconfig.get_path('platlib')[1:]}/rotel/rotel-agent",)),
    "systemd-analyze": Tool(lowest=(252,), why="what docs/deploy-systemd.md asks for"),
    "etcdctl": Tool(ask=("version",)),
    "java": Tool(ask=("-version",)),
    "kubectl": Tool(ask=("version", "--client")),
    "nginx": Tool(ask=("-v",)),
    "openssl": Tool(ask=("version",)),
    "traefik": Tool(ask=("version",)),
    # With whatever it is asked but an attack, it fails.
    "slowhttptest": Tool(ask=()),
    "libfaketime": Tool(ask=(), files=("usr/lib/*/faketime/libfaketime.so.1",)),
    "systemd": Tool(ask=(), files=("usr/lib/systemd/systemd", "lib/systemd/systemd")),
    "systemd's environment generator": Tool(
        ask=(), files=("usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator",)
    ),
    "zookeeper": Tool(ask=(), files=("usr/share/java/zookeeper.jar",)),
}


def missing(what: str) -> NoReturn:
    """Skip a test for want of a tool; where REQUIRE_TOOLS=1 promises all tools, fail."""
    if os.environ.get("REQUIRE_TOOLS") == "1":
        pytest.fail(f"{what}, and REQUIRE_TOOLS=1 says that it must be here", pytrace=False)
    pytest.skip(what)


def tool(name: str) -> Path:
    """Return the path of a tool that works; without one, skip the test or fail it."""
    if name == "docker" and os.environ.get("WITHOUT_ENGINE") == "1":
        pytest.skip("no container engine can be had here, says WITHOUT_ENGINE=1")
    found = look(name)
    return found if isinstance(found, Path) else missing(found)


@functools.cache
def look(name: str) -> Path | str:
    """Return the path of a tool that works, or the reason why there is none."""
    wanted = TOOLS.get(name, Tool())
    if wanted.files:
        paths = (path for pattern in wanted.files for path in Path("/").glob(pattern))
        path = next(paths, None)
        if not path:
            return f"{name} is missing: no file /{' or /'.join(wanted.files)}"
        if lacking := [each for each in wanted.beside if not (path.parent / each).exists()]:
            return f"{name} does not work: {path} is there without {' and '.join(lacking)}"
        return wrong(name, str(path), wanted) or path
    program = wanted.program or name
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if not (found := shutil.which(program, path=beside)):
        return f"{name} is missing: no program {program}"
    return wrong(name, found, wanted) or Path(found)


def wrong(name: str, program: str, wanted: Tool) -> str | None:
    """Return what is wrong with a tool whose program is there, if anything is."""
    if not wanted.ask:
        return None
    question = " ".join((Path(program).name, *wanted.ask))
    try:
        done = subprocess.run(
            (program, *wanted.ask),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{name} does not work: no answer to `{question}` in {ASK_SECONDS} s"
    except OSError as error:
        return f"{name} does not work: {error}"
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        why = f" ({wanted.why})" if wanted.why else ""
        return f"{name} does not work{why}: `{question}` says {said[:200]}"
    if wanted.lowest:
        version = re.search(r"\d+(\.\d+)*", done.stdout + done.stderr)
        if not version:
            return f"{name} does not work: `{question}` says no version"
        if tuple(map(int, version[0].split("."))) < wanted.lowest:
            lowest = ".".join(map(str, wanted.lowest))
            return f"{name} is too old: it is {version[0]}, and {lowest} is needed for {wanted.why}"
    return None
