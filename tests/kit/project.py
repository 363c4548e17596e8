"""Projects that are rendered from the template of this work tree."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

import pytest
from cookiecutter.exceptions import CookiecutterException  # type: ignore[import-untyped]
from cookiecutter.generate import generate_context  # type: ignore[import-untyped]
from cookiecutter.main import cookiecutter  # type: ignore[import-untyped]
from cookiecutter.prompt import prompt_for_config  # type: ignore[import-untyped]

from kit.service import clean_environment
from kit.tools import tool

ROOT = Path(__file__).parents[2]

# A command in a project may have to build an environment first, or run a whole suite.
COMMAND_SECONDS = 900
FRAMEWORKS = ("starlette", "fastapi")
TARGETS = ("kubernetes", "swarm", "systemd")
# Questions with a list of choices; any other answer is free text.
CHOICES: Mapping[str, list[str]] = {
    name: answers
    for name, answers in json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8")).items()
    if isinstance(answers, list)
}
COMBINATIONS: Mapping[str, Mapping[str, str]] = {
    **{
        f"{framework}-{target}": {"web_framework": framework, "deploy_to": target}
        for framework in FRAMEWORKS
        for target in TARGETS
    },
    "postgresql": {"database": "postgresql"},
    "fastapi-postgresql": {"web_framework": "fastapi", "deploy_to": "systemd", "database": "postgresql"},
    "hostile": {
        "project_name": """Zoë's "Größe" \\ Сервис {x} 天気 👩‍💻 ''' \"\"\" <b>&amp;</b> \\""",
        "project_description": "\"quoted\" 'it' \\n \\u0041 \\ $HOME `id` %s {0} }} #: - & @ 🚀 Ω */ --> é\\",
        "web_framework": "fastapi",
        "deploy_to": "swarm",
        "tracing": "opentelemetry",
    },
    "longest": {
        "project_name": "Ж" * 80,
        "project_description": "a word " * 28 + "more",
        "project_slug": "a-service-with-the-longest-slug-there-is",
        "package_name": "a_package_with_the_longest_name_there_is",
        "github_owner": "an-organisation-with-the-longest-name-0",
        "deploy_to": "systemd",
        "tracing": "opentelemetry",
        "http_client": "httpx2",
    },
}
NAMES = ("project_name", "project_description", "project_slug", "package_name", "github_owner")
HOSTILE, LONGEST = (
    {name: answer for name, answer in COMBINATIONS[combination].items() if name in NAMES}
    for combination in ("hostile", "longest")
)
# The checks are dear, so that not all answers meet: each two do.
CHECKED: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "fastapi": {"web_framework": "fastapi", "deploy_to": "systemd"},
    "tracing": {"deploy_to": "systemd", "tracing": "opentelemetry"},
    "postgresql": {"deploy_to": "systemd", "database": "postgresql"},
    "longest names, calls": {**LONGEST, "deploy_to": "systemd", "http_client": "httpx2"},
    "hostile names, all": {
        **HOSTILE,
        "web_framework": "fastapi",
        "deploy_to": "swarm",
        "tracing": "opentelemetry",
        "http_client": "httpx2",
        "database": "postgresql",
    },
}
# Each choice is in one of these combinations: the other combinations are slow.
QUICK = ("starlette-kubernetes", "starlette-swarm", "fastapi-systemd", "postgresql", "hostile", "longest")
# What a service itself has no use for.
FOR_CHASSIS = ("pytest-xdist>=3.8,<4", "websockets>=16,<17")
# What only the checks of a service use, and no image has. structlog and svcs import it where it is, which is
# a sixth of the work of a start.
NOT_FOR_CHASSIS = ("httpx2", "import-linter", "rich")
# The environments that a new one gets byte code from.
NEWEST = 4
# What is no part of the template, in a copy of this work tree.
NOT_COPIED = (".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis")

Bake = Callable[..., "Project"]


class RefusedError(Exception):
    """The answers were not taken; the message is what the person sees."""


def as_typed(answer: str) -> str:
    """Make cookiecutter take an answer as if it was typed: what comes by code, it renders first."""
    return "{{ " + ascii(answer) + " }}"


@dataclass(frozen=True)
class Project:
    """A rendered project, and the answers it was rendered from."""

    path: Path
    answers: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def package(self) -> str:
        return self.answers["package_name"]

    @property
    def python(self) -> Path:
        return self.path / ".venv/bin/python"

    @property
    def command(self) -> Path:
        """The service's own command."""
        return self.path / ".venv/bin" / self.name

    def files(self) -> list[Path]:
        """Return what was rendered, without what a later command made."""
        made = {".git", ".venv", "uv.lock", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
        return sorted(
            path
            for path in self.path.rglob("*")
            if path.is_file() and not made & set(path.relative_to(self.path).parts)
        )

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
            timeout=COMMAND_SECONDS,
        )
        if done.returncode:
            said = f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}"
            pytest.fail(said, pytrace=False)
        return done.stdout

    def sync(self) -> "Project":
        """Build the project's environment."""
        self.run(tool("uv"), "sync", "--quiet")
        return self

    def commit(self) -> "Project":
        """Make it a repository with one commit."""
        git(self.path, "init", "--quiet", "--initial-branch=main")
        git(self.path, "add", "--all")
        git(self.path, "commit", "--quiet", "--message", "Render")
        return self


class Renders:
    """Renders of this work tree's template: each set of answers once a session, for all of its workers.

    Args:
        folder: Where they are kept; the workers of a session share it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._no_tools = folder / "no-tools"
        self._no_tools.mkdir(exist_ok=True)
        self._config = folder / "config.yaml"
        # What cookiecutter would keep in the home folder otherwise.
        self._config.write_text(f"cookiecutters_dir: {folder}/cookiecutters\nreplay_dir: {folder}/replay\n")

    def fresh(self, into: Path, answers: Mapping[str, str], path: str | None = None) -> Project:
        """Render into a new folder below *into*; raise RefusedError with the reasons if the hooks refuse.

        Args:
            into: An existing folder.
            answers: The answers; for what is not answered, the defaults count.
            path: The PATH of the hooks. By default they find neither git nor uv, and ask no network.
        """
        output = Path(tempfile.mkdtemp(prefix="render-", dir=into))
        with pytest.MonkeyPatch.context() as patch, standard_error() as said:
            patch.setenv("PATH", path or str(self._no_tools))
            try:
                made = cookiecutter(
                    str(ROOT),
                    no_input=True,
                    extra_context=typed(answers),
                    output_dir=str(output),
                    config_file=str(self._config),
                )
            except CookiecutterException as error:
                # Fails when the refusal has left something behind.
                output.rmdir()
                said.seek(0)
                raise RefusedError(said.read()) from error
        return Project(Path(made), resolved(answers))

    def get(self, **answers: str) -> Project:
        """Return the one render of these answers; not to be changed."""
        return self._once("plain", answers, lambda into: self.fresh(into, answers))

    def copy(self, into: Path, answers: Mapping[str, str]) -> Project:
        """Copy the one render of these answers, which costs much less than to render again."""
        project = self.get(**answers)
        shutil.copytree(project.path, into / project.name, symlinks=True)
        return Project(into / project.name, project.answers)

    def with_environment(self, **answers: str) -> Project:
        """Return the one render of these answers that has its environment; not to be changed."""
        return self._once("environment", answers, lambda into: self.own(into, answers))

    def for_chassis(self, **answers: str) -> Project:
        """Return the one render of these answers that starts quickly, and can run tests/chassis."""

        def make(into: Path) -> Project:
            project = self.own(into, answers)
            pip, options = (tool("uv"), "pip"), ("--quiet", "--python", project.python)
            project.run(*pip, "install", *options, *FOR_CHASSIS)
            project.run(*pip, "uninstall", *options, *NOT_FOR_CHASSIS)
            return project

        return self._once("chassis", answers, make)

    def as_people_do(self, **answers: str) -> Project:
        """Return the one render of these answers that the hooks have made a repository with a lock."""

        def make(into: Path) -> Project:
            project = self.fresh(into, answers, f"{tool('uv').parent}{os.pathsep}{os.environ['PATH']}")
            if not (project.path / "uv.lock").exists():
                project.run(tool("uv"), "lock")
            return project

        return self._once("people", answers, make)

    def own(self, into: Path, answers: Mapping[str, str]) -> Project:
        """Return a copy of the render of these answers with its environment, which may be changed."""
        return self.sync(self.copy(into, answers))

    def sync(self, project: Project) -> Project:
        """Build the project's environment, with the byte code that earlier ones have of the same files.

        uv links one file into all of them, and without byte code each begins with seconds of compiling.
        """
        project.sync()
        here = project.path / ".venv"
        # Each has what there was when it was made, so that the newest ones have all of it.
        others = sorted(self._folder.glob("*/*/.venv"), key=lambda path: path.stat().st_mtime)[-NEWEST:]
        for folder in (folder for other in others for folder in other.glob("lib/**/__pycache__")):
            target = Path(here, *folder.parts[folder.parts.index(".venv") + 1 :])
            for compiled in os.scandir(folder) if target.parent.is_dir() else ():
                source = f"{compiled.name.partition('.')[0]}.py"
                known, wanted = folder.parent / source, target.parent / source
                there = target / compiled.name
                if not there.exists() and wanted.exists() and known.exists() and wanted.samefile(known):
                    target.mkdir(exist_ok=True)
                    there.hardlink_to(compiled)
        return project

    def what_mypy_read(self, into: Path, answers: Mapping[str, str]) -> None:
        """Copy what mypy has kept of a project with these answers, which it checks once a session."""
        kept = self._folder / "mypy"
        project = self.with_environment(**answers)
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                partly = kept.with_suffix(".part")
                project.run(project.path / ".venv/bin/mypy", MYPY_CACHE_DIR=str(partly))
                partly.rename(kept)
        shutil.copytree(kept, into)

    def _once(self, kind: str, answers: Mapping[str, str], make: Callable[[Path], Project]) -> Project:
        text = json.dumps([kind, *sorted(resolved(answers).items())])
        folder = self._folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with locked(folder.with_suffix(".lock")):
            if not (folder / "made").exists():
                # One that was interrupted is made anew.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                (folder / "made").write_text(str(make(folder).path), encoding="utf-8")
        return Project(Path((folder / "made").read_text(encoding="utf-8")), resolved(answers))


def combinations(names: Iterable[str]) -> list[pytest.ParameterSet]:
    """Return the parameters of a fixture that gives some of COMBINATIONS."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def typed(answers: Mapping[str, str]) -> dict[str, str]:
    return {name: value if name in CHOICES else as_typed(value) for name, value in answers.items()}


def resolved(answers: Mapping[str, str]) -> Mapping[str, str]:
    """Return all answers: those given, and the defaults that follow from them."""
    return _resolved(frozenset(answers.items()))


@functools.cache
def _resolved(answers: frozenset[tuple[str, str]]) -> Mapping[str, str]:
    extra = typed(dict(answers))
    context = generate_context(context_file=str(ROOT / "cookiecutter.json"), extra_context=extra)
    every = prompt_for_config(context, no_input=True)
    return MappingProxyType({name: value for name, value in every.items() if not name.startswith("_")})


@contextlib.contextmanager
def standard_error() -> Iterator[TextIO]:
    """Keep what this process and its children write to stderr in a file, which is yielded."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        before = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Template")
    return folder
