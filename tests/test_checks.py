"""The hooks never stop ordinary work, wherever the project lies and whatever is legal in its files."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.project import Project, Renders, git
from kit.service import clean_environment
from kit.tools import missing, tool
from kit.updates import commit, replace

pytestmark = pytest.mark.slow

RUNNERS = ("pre-commit", "prek")
# What looks like a part of a marker.
LEGAL = {
    "docs/decisions.md": "Context\n=======\n\nWe need one.\n\n> > > > > > > quoted\n",
    "docs/manual.rst": "=======\nManuals\n=======\n\n>>> 1 + 1\n2\n\n<<<<<<<\n",
    "docs/mail.txt": ">>>>>>>seven times answered\n<<<<<<<not a marker\n",
}
MARKER = "<<<<<<< HEAD\na\n=======\nb\n>>>>>>> theirs\n"
# Forty that many services have.
DEPENDENCIES = (
    *("aiofiles", "aiohttp", "alembic", "asyncpg", "azure-storage-blob"),
    *("beautifulsoup4", "boto3", "celery", "click", "cryptography"),
    *("elasticsearch", "google-cloud-storage", "grpcio", "jinja2", "kafka-python"),
    *("lxml", "matplotlib", "networkx", "numpy", "openpyxl"),
    *("orjson", "pandas", "paramiko", "pillow", "prometheus-async"),
    *("psutil", "pydantic", "pydantic-settings", "pyjwt", "pymongo"),
    *("python-dateutil", "python-multipart", "pyyaml", "redis", "requests"),
    *("scikit-learn", "sentry-sdk", "sqlalchemy", "stripe", "tenacity"),
)
# All hooks: those of a commit, and those that wait for a push.
ALL = ("run", "--all-files", "--hook-stage", "pre-push")


def path(uv: Path) -> str:
    return f"{uv.parent}{os.pathsep}{os.environ['PATH']}"


def attempt(folder: Path, uv: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Have git do something as a person does, with the hooks of the repository."""
    git(folder, "add", "--all")
    identity = ("-c", "user.name=Zoë", "-c", "user.email=zoe@example.org")
    return subprocess.run(
        (tool("git"), *identity, *command),
        cwd=folder,
        env=clean_environment(PATH=path(uv)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def root(renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which others work too; the project is in a folder of it."""
    root = tmp_path_factory.mktemp("mono")
    for name in ("their/src/main.py", "my-service-docs/src/domain.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("import   os\n")
    (root / "their" / "model.bin").write_bytes(b"0" * 600_000)
    (root / "their" / "compose.yaml").write_text("{{ a template }}\n")
    # A name as git quotes it, and as shells split it.
    teams = root / "teams" / "équipe bleue"
    teams.mkdir(parents=True)
    renders.own(teams, {})
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "All")
    return root


@pytest.fixture
def inside(root: Path, renders: Renders) -> Iterator[Project]:
    """The project in a folder of a larger repository, which is as it was afterwards."""
    before = git(root, "rev-parse", "HEAD")
    yield Project(root / "teams" / "équipe bleue" / "my-service", renders.get().answers)
    git(root, "reset", "--quiet", "--hard", before)


def see(project: Project, uv: Path, runner: str, *hooks: str) -> str:
    """Have one of the runners check all files with these hooks."""
    git(project.path, "add", "--all")
    said = "".join(project.run(tool(runner), *ALL, hook, PATH=path(uv)) for hook in hooks)
    assert "Skipped" not in said
    return said


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_is_legal_passes_and_markers_are_seen(inside: Project, uv: Path, runner: str) -> None:
    (inside.path / "docs").mkdir()
    for name, text in LEGAL.items():
        (inside.path / name).write_text(text)
    see(inside, uv, runner, "merge-markers", "private-keys")
    (inside.path / "docs" / "mail.txt").write_text(MARKER)
    with pytest.raises(pytest.fail.Exception, match=r"mail\.txt"):
        see(inside, uv, runner, "merge-markers")


def test_what_a_team_names_is_looked_at_by_no_hook(inside: Project, uv: Path) -> None:
    (inside.path / "tests" / "data").mkdir()
    (inside.path / "tests" / "data" / "conflict.txt").write_text(MARKER)
    replace(inside.path / ".pre-commit-config.yaml", "exclude: ^$", "exclude: /tests/data/")
    see(inside, uv, "pre-commit", "merge-markers")


def test_in_a_larger_repository_all_hooks_look_at_the_project_alone(inside: Project, uv: Path) -> None:
    """Also with a lock that forty dependencies have made large."""
    offline = ("Failed to fetch", "error sending request", "dns error")
    try:
        inside.run(uv, "add", "--no-sync", *DEPENDENCIES)
    except pytest.fail.Exception as error:
        if any(words in str(error) for words in offline):
            missing("no package index answers")
        raise
    assert (inside.path / "uv.lock").stat().st_size > 1_000_000
    git(inside.path, "add", "--all")
    # Locked is enough: no check needs them installed.
    said = inside.run(tool("pre-commit"), *ALL, PATH=path(uv), UV_NO_SYNC="1")
    assert "Skipped" not in said
    see(inside, uv, "prek", "ruff", "secrets", "workflows", "compose")
    (inside.path / "src" / inside.package / "domain.py").write_text("import   os\n")
    for runner in RUNNERS:
        with pytest.raises(pytest.fail.Exception, match=r"domain\.py"):
            see(inside, uv, runner, "ruff")


@pytest.mark.parametrize("runner", RUNNERS)
def test_in_a_larger_repository_everybody_can_commit_and_push(
    inside: Project, root: Path, uv: Path, tmp_path: Path, runner: str
) -> None:
    inside.run(tool(runner), "install", "--overwrite", PATH=path(uv))
    git(tmp_path, "clone", "--quiet", "--bare", str(root), "remote")
    push = ("push", str(tmp_path / "remote"), "HEAD:main")
    (root / "their" / "src" / "main.py").write_text(f"import   {runner.replace('-', '_')}\n")
    (root / "README.md").write_text("All of us\n=======\n")
    record = ("commit", "--message", "Work")
    for command in (record, push):
        done = attempt(root, uv, *command)
        assert done.returncode == 0, done.stdout
    (inside.path / ".env.example").write_text("APP_NOTHING=1\n")
    done = attempt(root, uv, *record)
    assert done.returncode == 1
    assert "Now run - uv run my-service config --format dotenv > .env.example" in done.stdout
    # What takes longer waits for the push.
    git(root, "checkout", "--quiet", "HEAD", ".")
    (inside.path / "src" / inside.package / "untyped.py").write_text("def f(x):\n    return x\n")
    done = attempt(root, uv, *record)
    assert done.returncode == 0, done.stdout
    done = attempt(root, uv, *push)
    assert done.returncode == 1
    assert "untyped.py:1: error: " in done.stdout
