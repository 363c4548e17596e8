"""Baked projects, and the tools that tests of them need."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]

TARGETS = ("kubernetes", "swarm", "systemd")
COMBINATIONS: Mapping[str, Mapping[str, str]] = {
    **{
        f"{framework}-{target}": {"web_framework": framework, "deploy_to": target}
        for framework in ("starlette", "fastapi")
        for target in TARGETS
    },
    "hostile": {
        "project_name": """Zoë's "Größe" \\ Сервис {x} 天気 👩‍💻 ''' \"\"\" <b>&amp;</b> \\""",
        "project_description": "\"quoted\" 'it' \\n \\u0041 \\ $HOME `id` %s {0} }} #: - & @ 🚀 Ω */ --> é\\",
        "web_framework": "fastapi",
        "deploy_to": "swarm",
    },
    "longest": {
        "project_name": "Ж" * 80,
        "project_description": "a word " * 28 + "more",
        "project_slug": "a-service-with-the-longest-slug-there-is",
        "package_name": "a_package_with_the_longest_name_there_is",
        "github_owner": "an-organisation-with-the-longest-name-0",
        "deploy_to": "systemd",
    },
}


class Shown:
    """Puts what a test recorded as "shown" on the terminal, from whatever worker it comes."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, line in report.user_properties:
                if name == "shown":
                    self._terminal.ensure_newline()
                    self._terminal.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Shown(terminal))


class RefusedError(Exception):
    """The answers were not taken; the words are what the person sees."""


def as_typed(answer: str) -> str:
    """Make cookiecutter take an answer as if it was typed: what comes by code, it renders first."""
    return "{{ " + ascii(answer) + " }}"


def clean_environment(**changes: str) -> dict[str, str]:
    """Give this process's environment without what would reach into a baked project, and with the changes."""
    foreign = ("APP_", "COV_", "COVERAGE_", "GIT_", "PYTEST_", "VIRTUAL_ENV")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(foreign) and name != "PORT"
    }
    return kept | changes


@dataclass(frozen=True)
class Project:
    path: Path
    answers: Mapping[str, str]

    @property
    def package(self) -> str:
        return self.answers["package_name"]

    def files(self) -> list[Path]:
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command in the project and return what it printed; a failure shows all of it."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if done.returncode:
            said = f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}"
            pytest.fail(said, pytrace=False)
        return done.stdout


Bake = Callable[..., Project]


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Run git as nobody in particular, without the settings of this machine."""
    identity = ("-c", "user.name=Zoë", "-c", "user.email=zoe@example.org", "-c", "commit.gpgSign=false")
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        (tool("git"), *identity, *arguments),
        cwd=folder,
        env=clean_environment(**plain | environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.fail(f"git {' '.join(arguments)}: {done.stdout}{done.stderr}", pytrace=False)
    return done.stdout.rstrip("\n")


def copy_of_the_template(folder: Path) -> Path:
    """Copy this work tree, with what is not committed yet, and make it a repository with one commit."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=ignored)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Template")
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a repository of its own; not to be changed."""
    return copy_of_the_template(tmp_path_factory.mktemp("template") / "deployable-service")


@pytest.fixture
def bake(
    cookies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Bake:
    """Bake the template of this work tree with the given answers, or raise RefusedError with the reasons.

    The hooks find neither git nor uv on the PATH, so a bake is quick and needs no network.
    """

    def bake(**answers: str) -> Project:
        choices = ("web_framework", "deploy_to")
        given = {key: value if key in choices else as_typed(value) for key, value in answers.items()}
        empty = tmp_path / "no-tools"
        empty.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(empty))
            result = cookies.bake(extra_context=given, template=str(ROOT))
        said = capfd.readouterr()
        if result.exception is not None:
            raise RefusedError(said.err) from result.exception
        return Project(result.project_path, result.context)

    return bake


@pytest.fixture(params=COMBINATIONS)
def project(request: pytest.FixtureRequest, bake: Bake) -> Project:
    """A project for each of the named combinations."""
    return bake(**COMBINATIONS[request.param])


def missing(what: str) -> NoReturn:
    """Skip a test for want of a tool; where REQUIRE_TOOLS=1 promises all tools, fail."""
    if os.environ.get("REQUIRE_TOOLS") == "1":
        pytest.fail(f"{what} is missing, and REQUIRE_TOOLS=1 says that it must be here")
    pytest.skip(f"{what} is missing")


def tool(name: str) -> Path:
    """Find a program next to this Python or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    return Path(found) if found else missing(name)


@pytest.fixture(scope="session")
def uv() -> Path:
    return tool("uv")


def _render(cookies: Any, uv: Path, factory: pytest.TempPathFactory, **answers: str) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(factory.mktemp("no-tools")))
        result = cookies.bake(extra_context=answers, template=str(ROOT))
    assert result.exception is None, result
    project = Project(result.project_path, result.context)
    project.run(uv, "sync", "--quiet")
    return project


@pytest.fixture(scope="session")
def rendered(cookies_session: Any, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default service, with its environment; not to be changed."""
    return _render(cookies_session, uv, tmp_path_factory)


@pytest.fixture(scope="session")
def fastapi(cookies_session: Any, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same with FastAPI."""
    return _render(cookies_session, uv, tmp_path_factory, web_framework="fastapi")


@pytest.fixture(scope="module")
def world(rendered: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What starts hostile services (tests/hostile/world.py)."""
    from world import world_of

    with world_of(rendered, tmp_path_factory.mktemp("world")) as world:
        yield world
