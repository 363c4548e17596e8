"""What is rendered passes its own checks, and the chassis does when all the rest is a team's own."""

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from kit.project import CHECKED, CHOICES, ROOT, Project, Renders

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("what_mypy_read")]

STEPS = (
    ("mypy",),
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("lint-imports",),
)
# What a team may have made of the example: nothing of it is left, and there is something that must be set.
TEAM = ROOT / "tests" / "apps" / "team"


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
    for program, *arguments in STEPS:
        project.run(project.path / ".venv/bin" / program, *arguments)


@pytest.mark.parametrize("combination", CHECKED)
def test_a_generated_project_passes_its_own_checks(renders: Renders, uv: Path, combination: str) -> None:
    check(renders.with_environment(**CHECKED[combination]), uv)


def test_each_two_answers_are_checked_together(renders: Renders) -> None:
    same = {"swarm": "kubernetes"}
    assert what_is_checked(renders.get(deploy_to="swarm")) == what_is_checked(renders.get())

    def pairs(answers: Mapping[str, str]) -> set[frozenset[tuple[str, str]]]:
        chosen = [(name, same.get(answers[name], answers[name])) for name in CHOICES]
        return {frozenset(pair) for pair in itertools.combinations(chosen, 2)}

    wanted = [dict(zip(CHOICES, each, strict=True)) for each in itertools.product(*CHOICES.values())]
    checked = [renders.get(**answers).answers for answers in CHECKED.values()]
    missing = set().union(*map(pairs, wanted)) - set().union(*map(pairs, checked))
    assert len(wanted) > len(checked)
    assert not missing, f"never checked together: {sorted(map(sorted, missing))}"


def test_the_chassis_and_its_tests_outlive_the_example(renders: Renders, uv: Path, tmp_path: Path) -> None:
    project = renders.own(tmp_path, {})
    for path in (TEAM / "src").iterdir():
        shutil.copy(path, project.path / "src" / project.package)
    for path in (TEAM / "tests").iterdir():
        shutil.copy(path, project.path / "tests")
    for name in ("test_app.py", "test_domain.py"):
        (project.path / "tests" / name).unlink()
    example = project.run(project.python, "-m", project.package, "config", "--format", "dotenv")
    (project.path / ".env.example").write_text(example)
    check(project, uv)
