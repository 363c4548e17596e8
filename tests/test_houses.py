"""Pre-commit sees what must not get into a project; that a fresh one passes, test_checks.py shows."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.project import Project, Renders, git

pytestmark = pytest.mark.slow

# file, what is put into it, and the hook that must see it
MISTAKES = (
    (
        ".github/workflows/all.yml",
        "name: all\non: push\npermissions: write-all\njobs: {a: {runs-on: x, steps: [{run: ls}]}}\n",
        "zizmor",
    ),
    (
        ".github/workflows/title.yml",
        "name: title\non: issues\npermissions: {}\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
        "      - run: echo ${{ github.event.issue.title }}\n",
        "zizmor",
    ),
    (
        ".github/workflows/shape.yml",
        "name: shape\non: push\njobs: {a: {runs-on: x, step: []}}\n",
        "workflows",
    ),
    (".github/dependabot.yml", "version: 3\n", "dependabot"),
    ("compose.yaml", "services: {a: {imago: b}}\n", "compose"),
    ("Dockerfile", "FROM python\nRUN cd / && sudo pip install x\n", "hadolint"),
    ("key.pem", f"-----BEGIN RSA {'PRIVATE'} KEY-----\nMIIE\n", "private-keys"),
    ("src/my_service/token.py", f'TOKEN = "{"ghp" + "_q5VxxzEEoNfI5zlFff5zsphYbfe36FOUxSAh"}"\n', "secrets"),
    ("settings.env", f"DB=postgres://app:{'hunter2'}hunter9@db.internal/app\n", "secrets"),
    ("docs/notes.md", f"Use {'ghp'}_q5VxxzEEoNfI5zlFff5zsphYbfe36FOUxSAh.\n", "secrets-in-prose"),
    ("roll.sh", "#!/bin/sh\nfor each in $(ls *.txt); do rm $each; done\n", "shellcheck"),
    ("merged.txt", "<<<<<<< ours\na\n=======\nb\n>>>>>>> theirs\n", "merge-markers"),
    ("large.bin", "0" * 600_000, "large-files"),
    ("src/my_service/ugly.py", "x   = 1\n", "ruff"),
    ("src/my_service/unused.py", "import os\n", "ruff"),
    ("src/my_service/untyped.py", "def f(x):\n    return x\n", "mypy"),
    ("src/my_service/domain.py", '"""The domain."""\n\nimport starlette.routing\n', "lint-imports"),
    ("src/my_service/around.py", "from .chassis.logs import get_logger as get_logger\n", "lint-imports"),
    ("src/my_service/chassis/back.py", "from .. import domain as domain\n", "lint-imports"),
    (".env.example", "APP_NOTHING=1\n", "env-example"),
)
# The hooks of a commit, and those that wait for a push, as `make check` has it.
ALL = ("run", "--all-files", "--hook-stage", "pre-push")
# What the hooks say that don't name the file: one knows a single file, one names modules, one puts it right.
NAMELESS = {
    "env-example": ["Now run - uv run my-service config --format dotenv > .env.example"],
    "lint-imports": [
        "my_service.domain is not allowed to import starlette",
        "my_service.around -> my_service.chassis.logs",
        "my_service.chassis is not allowed to import my_service.domain",
    ],
    "ruff": ["unused.py", "1 file reformatted"],
}


@pytest.fixture(scope="module")
def project(renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default service with its environment, as a repository with one commit."""
    return renders.own(tmp_path_factory.mktemp("house"), {}).commit()


@pytest.fixture
def committed(project: Project) -> Iterator[Project]:
    """The same, and as it was afterwards."""
    yield project
    git(project.path, "reset", "--quiet", "--hard")


@pytest.mark.parametrize("hook", dict.fromkeys(hook for _, _, hook in MISTAKES))
def test_each_mistake_is_seen_by_its_hook(committed: Project, uv: Path, tmp_path: Path, hook: str) -> None:
    names = [name for name, _, sees in MISTAKES if sees == hook]
    for name, text, _ in MISTAKES:
        if name in names:
            (committed.path / name).parent.mkdir(exist_ok=True)
            (committed.path / name).write_text(text, encoding="utf-8")
    git(committed.path, "add", "--all")
    # A person has uv on the PATH; what else lies next to ours must not help.
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "uv").symlink_to(uv)
    path = f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}"
    with pytest.raises(pytest.fail.Exception) as failed:
        committed.run(uv, "run", "--quiet", "pre-commit", *ALL, hook, PATH=path)
    said = str(failed.value)
    words = NAMELESS.get(hook, [Path(name).name for name in names])
    unseen = [word for word in words if word not in said]
    assert not unseen, said
