"""The loop of everyday work in a generated project: one test, the debugger, `make dev`."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.project import Bake, Project
from kit.service import answers, ask, clean_environment, free_ports, wait_for

pytestmark = pytest.mark.slow

ONE = "tests/test_app.py::test_greets_a_name_from_the_path"


@pytest.mark.parametrize("options", [(), ("--pdb",)])
def test_one_test_runs_by_itself(rendered: Project, uv: Path, options: tuple[str, ...]) -> None:
    said = rendered.run(uv, "run", "pytest", *options, ONE)
    assert "1 passed" in said
    assert "coverage" not in said


def test_a_suite_passes_while_another_one_runs_beside_it(rendered: Project) -> None:
    suites = [
        subprocess.Popen(
            (rendered.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            cwd=rendered.path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [suite.communicate(timeout=300)[0] for suite in suites]
    assert [suite.returncode for suite in suites] == [0, 0], "\n".join(said)


def test_the_suite_passes_behind_a_proxy_and_in_a_deep_folder(rendered: Project, tmp_path: Path) -> None:
    # A socket's address holds 107 characters, on macOS 103.
    deep = tmp_path / "jenkins" / ("workspace of a build" * 4) / "my-service@tmp"
    deep.mkdir(parents=True)
    nobody = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    suite = (rendered.python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    rendered.run(*suite, TMPDIR=str(deep), **nobody)


@contextlib.contextmanager
def make_dev(project: Project, uv: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `make dev`; at the end, do what Ctrl-C does in a terminal."""
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    # A session of its own: the signal must not reach this process too.
    process = subprocess.Popen(
        ("make", "dev"), cwd=project.path, env=clean_environment(PATH=path), start_new_session=True
    )
    try:
        yield process
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_make_dev_hands_over_settings_and_secrets_and_restarts_on_save(bake: Bake, uv: Path) -> None:
    project = bake().sync()
    http, admin = free_ports(2)
    (project.path / ".env").write_text(f"APP_HTTP_PORT={http}\nAPP_ADMIN_PORT={admin}\n")
    (project.path / "secrets").mkdir(exist_ok=True)
    (project.path / "secrets" / "greeting_token").write_text("hunter2")
    with make_dev(project, uv):
        wait_for(lambda: answers(http, "/-/ready"), "the service")
        assert ask(http, "/greetings/Ada").status == 401

        def greeting() -> str:
            with contextlib.suppress(OSError):
                return ask(http, "/greetings/Ada", headers={"Authorization": "Bearer hunter2"}).text
            return ""

        assert "Good " in greeting()
        domain = project.path / "src" / project.package / "domain.py"
        domain.write_text(domain.read_text().replace("Good ", "Very good "))
        wait_for(lambda: "Very good " in greeting(), "the changed answer")
    wait_for(lambda: not answers(http, "/-/ready"), "the end of all of them")
