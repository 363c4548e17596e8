"""An update runs the service's suite with what compose.test.yaml has, as the service's CI does."""

import re
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.project import git
from kit.tools import tool
from kit.updates import PROJECT, commit, next_release, relink, replace, update, without_environments

pytestmark = pytest.mark.slow

# Something that the tests need, in an image that is here anyway; it is up a moment after its start.
COMPOSE = """name: PROJECT
services:
  needed:
    image: IMAGE
    network_mode: none
    command: [sh, -c, "sleep 1; touch /needed/up; sleep 600"]
    volumes: [FOLDER:/needed]
    healthcheck: {test: [CMD, test, -e, /needed/up], interval: 1s, retries: 60}
    stop_grace_period: 0s
"""
TEST = """from pathlib import Path


def test_what_is_needed_is_up() -> None:
    assert Path("FOLDER/up").exists()
"""


def a_line_more(folder: Path) -> None:
    replace(folder / PROJECT / "Dockerfile", "STOPSIGNAL", "# Later.\nSTOPSIGNAL")


def test_what_the_suite_needs_is_started_before_it(
    small: Path, newborn: Path, engine: Engine, tmp_path: Path
) -> None:
    tool("docker compose")
    path = without_environments(tmp_path / "programs")
    needed = tmp_path / "needed"
    needed.mkdir()
    (image,) = re.findall(r"^FROM (\S+) AS python$", (newborn / "Dockerfile").read_text(), re.MULTILINE)
    for file in (newborn / "tests").glob("test_*.py"):
        file.unlink()
    (newborn / "tests" / "test_needed.py").write_text(TEST.replace("FOLDER", str(needed)))
    compose = newborn / "compose.test.yaml"
    compose.write_text("services: {needed: {}}\n")
    relink(newborn, template=str(next_release(small, tmp_path / "later", a_line_more)))
    done = update(newborn, "--checkout", "v1.1.0", PATH=path)
    assert done.returncode != 0
    assert (
        "compose.test.yaml lists does not start. If all of it runs already: make update COMP" in done.stdout
    )
    assert "The suite passes" not in done.stdout

    git(newborn, "reset", "--quiet", "--hard")
    listed = COMPOSE.replace("PROJECT", unique_name()).replace("IMAGE", image)
    compose.write_text(listed.replace("FOLDER", str(needed)))
    commit(newborn, "Mend the list")
    try:
        done = update(newborn, "--checkout", "v1.1.0", PATH=path)
        assert done.returncode == 0, done.stdout
        assert "The suite passes with it." in done.stdout
    finally:
        engine.call("compose", "--file", compose, "down", "--volumes", check=False)
