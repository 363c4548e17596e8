"""Each named combination passes its own checks, and the chassis does when all the rest is a team's own."""

import hashlib
import re
from pathlib import Path

import pytest
from conftest import Bake, Project

STEPS = (
    ("sync", "--quiet"),
    ("run", "pytest"),
    ("run", "mypy"),
    ("run", "ruff", "check"),
    ("run", "ruff", "format", "--check"),
    ("run", "lint-imports"),
)

# What a team may have made of the example: nothing of it is left, and there is something that must be set.
OWN_CODE = {
    "src/{package}/app.py": """\
import svcs
from starlette.applications import Starlette

from .config import Config


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    return Starlette()
""",
    "src/{package}/config.py": """\
import environ

from .chassis.config import Settings, secret
from .chassis.secrets import Secret


@environ.config(frozen=True)
class Db:
    url: str = environ.var(help="where the database is")
    password: Secret = secret(help="its password")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    db: Db = environ.group(Db)
""",
    "src/{package}/domain.py": "",
    "src/{package}/services.py": """\
import svcs

from .config import Config

INFORMS: frozenset[type] = frozenset()


def register_services(registry: svcs.Registry, config: Config) -> None: ...
""",
    "tests/environment.py": """\
ENVIRONMENT: dict[str, str] = {{"APP_DB_URL": "postgres://db"}}
SECRETS: dict[str, str] = {{"db_password": "hunter2"}}
""",
}


@pytest.fixture(scope="module")
def passed() -> set[bytes]:
    """What has passed, so that nothing is run twice."""
    return set()


def what_is_checked(project: Project) -> bytes:
    """Hash all that the checks can see: how it is deployed is not among that."""
    digest = hashlib.sha256()
    for path in project.files():
        name = path.relative_to(project.path).as_posix()
        if name != "README.md" and not name.startswith("deploy/"):
            text = re.sub(rb'\n    "deploy/.*",', b"", path.read_bytes())
            digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.digest()


@pytest.mark.slow
def test_a_generated_project_passes_its_own_checks(project: Project, uv: Path, passed: set[bytes]) -> None:
    seen = what_is_checked(project)
    if seen in passed:
        return
    for step in STEPS:
        # The chassis has to be covered too, which is no concern of a team.
        project.run(uv, *step, UNMEASURED="nothing")
    # Fails if nothing of it was measured.
    project.run(uv, "run", "coverage", "report", "--include=src/*/chassis/*", UNMEASURED="nothing")
    passed.add(seen)


@pytest.mark.slow
def test_the_chassis_and_its_tests_outlive_the_example(bake: Bake, uv: Path) -> None:
    project = bake()
    project.run(uv, "run", "pytest")
    for path, text in OWN_CODE.items():
        (project.path / path.format(package=project.package)).write_text(text.format())
    for name in ("test_app.py", "test_domain.py"):
        (project.path / "tests" / name).unlink()
    project.run(uv, "sync", "--quiet")
    example = project.run(uv, "run", "python", "-m", project.package, "config", "--format", "dotenv")
    (project.path / ".env.example").write_text(example)
    for step in STEPS:
        project.run(uv, *step)
