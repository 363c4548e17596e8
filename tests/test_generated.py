"""Each named combination passes its own checks, and the chassis does when all the rest is a team's own."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from kit.project import COMBINATIONS, ROOT, Bake, Project, Renders

pytestmark = pytest.mark.slow

STEPS = (
    ("mypy",),
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("lint-imports",),
)
# What a team may have made of the example: nothing of it is left, and there is something that must be set.
TEAM = ROOT / "tests" / "apps" / "team"


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


def check(project: Project, uv: Path) -> None:
    project.run("make", "test", PATH=f"{uv.parent}{os.pathsep}{os.environ['PATH']}")
    for step in STEPS:
        project.run(uv, "run", *step)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_generated_project_passes_its_own_checks(
    renders: Renders, uv: Path, passed: set[bytes], combination: str
) -> None:
    answers = COMBINATIONS[combination]
    seen = what_is_checked(renders.get(**answers))
    if seen not in passed:
        check(renders.with_environment(**answers), uv)
        passed.add(seen)


def test_the_chassis_and_its_tests_outlive_the_example(bake: Bake, uv: Path) -> None:
    project = bake().sync()
    for path in (TEAM / "src").iterdir():
        shutil.copy(path, project.path / "src" / project.package)
    for path in (TEAM / "tests").iterdir():
        shutil.copy(path, project.path / "tests")
    for name in ("test_app.py", "test_domain.py"):
        (project.path / "tests" / name).unlink()
    example = project.run(project.python, "-m", project.package, "config", "--format", "dotenv")
    (project.path / ".env.example").write_text(example)
    check(project, uv)
