"""Both ends of the version ranges: fresh locks have the newest (test_generated.py), here are the lowest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.project import NOT_COPIED, ROOT, Bake
from kit.service import clean_environment
from kit.workflows import steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_the_suite_passes_with_the_lowest_versions_that_are_allowed(
    bake: Bake, uv: Path, framework: str
) -> None:
    project = bake(web_framework=framework)
    for step in steps(project.path, "weekly", "test"):
        if not step.run.startswith("pipx"):
            wanted = {"UV_PYTHON": "3.11", "UV_RESOLUTION": "lowest-direct"}
            project.run(
                "bash", "-ec", step.run, PATH=f"{uv.parent}{os.pathsep}{os.environ['PATH']}", **wanted
            )
    lock = (project.path / "uv.lock").read_text()
    for name, lowest in re.findall(
        r'"([a-z0-9.-]+)>=([0-9.]+),<', (project.path / "pyproject.toml").read_text()
    ):
        found = re.search(rf'^name = "{re.escape(name)}"\nversion = "([^"]+)"$', lock, flags=re.MULTILINE)
        # hatchling builds the project and is not locked with it.
        assert name == "hatchling" or (found and found[1].startswith(lowest)), name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The template, as it was when msgspec 0.20 was the newest."""
    ignored = shutil.ignore_patterns(*NOT_COPIED)
    copy = Path(shutil.copytree(ROOT, tmp_path / "template", ignore=ignored))
    pyproject = copy / "{{cookiecutter.project_slug}}" / "pyproject.toml"
    text = re.sub(r'"msgspec>=[^"]+"', '"msgspec>=0.19,<0.21"', pyproject.read_text())
    pyproject.write_text(re.sub(r'"attrs>=[^"]+"', '"attrs>=24.2,<25"', text))
    return pyproject


def deps(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = copy.parents[1] / "scripts" / "deps.py"
    return subprocess.run(
        (sys.executable, script, *arguments),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("uv")
def test_ranges_take_in_the_newest_releases_when_the_tests_pass(copy: Path) -> None:
    done = deps(copy, "true")
    assert done.returncode == 0, done.stderr
    assert re.search(r'"msgspec>=0\.19,<0\.(2[2-9]|[3-9]\d)"', copy.read_text())
    assert re.search(r'"attrs>=24\.2,<(2[6-9]|[3-9]\d)"', copy.read_text())
    assert "msgspec: <0.21 becomes" in done.stdout


@pytest.mark.usefixtures("uv")
def test_ranges_stay_when_the_tests_fail(copy: Path) -> None:
    before = copy.read_text()
    done = deps(copy, "false")
    assert done.returncode == 1
    assert copy.read_text() == before
    assert "make deps ONLY=NAME" in done.stderr


@pytest.mark.usefixtures("uv")
def test_one_distribution_can_be_tried_alone(copy: Path) -> None:
    assert deps(copy, "--only", "msgspec", "true").returncode == 0
    assert '"attrs>=24.2,<25"' in copy.read_text()
    assert '"msgspec>=0.19,<0.21"' not in copy.read_text()
