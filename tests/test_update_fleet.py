"""A year of a fleet: four services whose Dependabot goes on each week, and a template with six releases.

During the year only git and cruft run, and the template has no chassis, in which no robot ever raises
anything. In the end a service of each framework gets the chassis back, and its suite runs. That an update
locks anew and runs the suite by itself is in test_update.py.
"""

import hashlib
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.project import Project, Renders, git
from kit.updates import (
    PACKAGE,
    PROJECT,
    commit,
    contents,
    created,
    release,
    update,
    without_environments,
)
from updates.versions import differ_in_versions_only

pytestmark = pytest.mark.slow

RELEASE_WEEKS = (8, 17, 26, 34, 43, 52)
# The answers of a service, and each how many releases it takes one.
FLEET: Mapping[str, tuple[Mapping[str, str], int]] = {
    "every release": ({"deploy_to": "kubernetes"}, 1),
    "every second": ({"deploy_to": "swarm", "web_framework": "fastapi"}, 2),
    "every third": ({"deploy_to": "systemd"}, 3),
    "the last one": ({"deploy_to": "kubernetes", "web_framework": "fastapi"}, 6),
}
# The one with the conflict: it has changed a line of the template's that release 5 changes too.
EDITED = "every release"
# One of each framework: no other answer changes what a suite of this fleet runs.
WITH_SUITE = ("every release", "the last one")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def image(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{number}"


def image_with_digest(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{number}.0@sha256:{digest(f'{match[1]}{number}')}"


def action(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{digest(str(number))[:40]} # v6.{number}.0"


def wider(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{number + 1}"


def higher(match: re.Match[str], number: int) -> str:
    return f"{match[1]}{number},<{match[2]}{number + 1}"


@dataclass(frozen=True)
class Dependency:
    """What both robots raise: where it stands, what is put there, and the number it has at the beginning.

    A range of versions ends the year as it is today, since the suites need packages that exist.
    """

    pattern: str
    put: Callable[[re.Match[str], int], str]
    first: int | None = None


DEPENDENCIES = (
    Dependency(r"(astral-sh/uv:0\.13\.)\d+", image, 9),
    Dependency(r"(grype:v0\.)[\d.]+@sha256:\w{64}", image_with_digest, 118),
    Dependency(r"(cosign:v3\.)[\d.]+@sha256:\w{64}", image_with_digest, 1),
    Dependency(r"(actions/checkout@)\w{40} # v[\d.]+", action, 0),
    Dependency(r'("uvloop>=0\.\d+,<0\.)\d+', wider),
    Dependency(r'("uvicorn>=0\.)\d+,<(0\.)\d+', higher),
    Dependency(r'("structlog>=26\.\d+,<)\d+', wider),
    Dependency(r'("ruff>=0\.)[\d.]+,<(0\.)\d+', higher),
    Dependency(r'("mypy>=2\.\d+,<)\d+', wider),
    Dependency(r'("pytest>=)[\d.]+,<()\d+', higher),
)
PINNED = ("pyproject.toml", "Dockerfile", ".github/tools/Dockerfile", ".github/workflows/*.yml")
CI = ".github/workflows/ci.yml"


def change(file: Path, pattern: str, put: str | Callable[[re.Match[str]], str]) -> bool:
    text = file.read_text(encoding="utf-8")
    changed = re.sub(pattern, put, text)
    if changed != text:
        file.write_text(changed, encoding="utf-8")
    return changed != text


def raise_to(folder: Path, dependency: Dependency, number: int) -> bool:
    """Put a version wherever the dependency stands, and tell whether that changes anything."""
    files = [file for pattern in PINNED for file in folder.glob(pattern)]
    changed = [
        change(file, dependency.pattern, lambda match: dependency.put(match, number)) for file in files
    ]
    return any(changed)


def year_of(dependency: Dependency, project: Path, chance: random.Random) -> list[int]:
    """Return the newest number in each week."""
    raises = [chance.random() < 0.3 for _ in range(52)]
    if dependency.first is not None:
        return [dependency.first + sum(raises[:week]) for week in range(53)]
    match = re.search(dependency.pattern, (project / "pyproject.toml").read_text(encoding="utf-8"))
    assert match, dependency.pattern
    today = int(re.findall(r"\d+", match[0])[-1]) - 1
    return [max(1, today - sum(raises[week:])) for week in range(53)]


def at_work(project: Path, package: Path, number: int) -> None:
    """Change the template for a release, also right beside the lines that the robots change."""
    change(package / "__main__.py", r"\A(# Release \d+\.\n)?", f"# Release {number}.\n")
    pyproject, workflows = project / "pyproject.toml", project / ".github/workflows"
    changes: Mapping[int, Callable[[], object]] = {
        1: lambda: change(pyproject, r'    "uvicorn>', r'    "tzdata>=2026.1",\n\g<0>'),
        2: lambda: change(project / "Dockerfile", r"FROM ghcr\.io.*", r"# Release 2.\n\g<0>\n# Release 2."),
        3: lambda: change(pyproject, r'    "mypy>.*\n', ""),
        4: lambda: (workflows / "weekly.yml").rename(workflows / "monday.yml"),
        5: lambda: change(project / CI, "timeout-minutes: 10", "timeout-minutes: 12"),
        6: lambda: (project / ".github/tools/Dockerfile").unlink(),
    }
    changes[number]()


def solve(service: Path, said: str) -> None:
    """Do what a person does with the deliberate conflict: keep the service's side."""
    assert re.findall(r"^  (\S+): changed here", said, flags=re.MULTILINE) == [CI]
    found = re.findall(
        r"<<<<<<<.*\n((?:.*\n)*?)=======\n((?:.*\n)*?)>>>>>>>", (service / CI).read_text(encoding="utf-8")
    )
    assert [[text.strip() for text in sides] for sides in found] == [
        ["timeout-minutes: 30", "timeout-minutes: 12"]
    ]
    change(service / CI, r"<<<<<<<.*\n((?:.*\n)*?)=======\n(?:.*\n)*?>>>>>>>.*\n", r"\1")


def suite(service: Path, whole: Project, uv: Path) -> int:
    """Give a service the chassis of a *whole* one, run its suite, and return how many tests have passed."""
    project = Project(service, whole.answers)
    for name in (f"src/{project.package}/chassis", "tests/chassis"):
        shutil.copytree(whole.path / name, service / name)
    (service / f"src/{project.package}/chassis.py").unlink()
    project.run(uv, "lock", "--quiet")
    said = project.run(uv, "run", "pytest", "-q")
    (number,) = re.findall(r"^(\d+) passed in ", said, flags=re.MULTILINE) or [said]
    assert number.isdecimal(), said
    return int(number)


def test_a_year_of_a_fleet_without_a_conflict_but_the_deliberate_one(
    tmp_path: Path, uv: Path, small: Path, renders: Renders, show: Callable[[str], None]
) -> None:
    chance = random.Random(2026)
    template = tmp_path / "deployable-service"
    git(tmp_path, "clone", "--quiet", str(small), str(template))
    newest = {each: year_of(each, template / PROJECT, chance) for each in DEPENDENCIES}
    released = [{dependency: numbers[0] for dependency, numbers in newest.items()}]
    for dependency, number in released[0].items():
        raise_to(template / PROJECT, dependency, number)
    commit(template, "Begin the year")
    git(template, "tag", "v1.0.0")
    for last, week in enumerate(RELEASE_WEEKS, 1):
        at_work(template / PROJECT, template / PACKAGE, last)
        # The template doesn't always have the newest: it is ahead of a service, or behind it.
        behind = 0 if week == 52 else 3
        released.append({each: numbers[week - chance.randint(0, behind)] for each, numbers in newest.items()})
        for dependency, number in released[-1].items():
            raise_to(template / PROJECT, dependency, number)
        release(template, f"v1.{last}.0", f"- Release {last}.")

    path = without_environments(tmp_path / "programs")
    updates = bumps = 0
    conflicts = []
    for name, (answers, pace) in FLEET.items():
        service = created(template, tmp_path / name, "v1.0.0", **answers)
        git(service, "init", "--quiet", "--initial-branch=main")
        commit(service, "Render")
        has = dict(released[0])
        for week in range(1, 53):
            merged = [dependency for dependency in DEPENDENCIES if chance.random() < 0.2]
            for dependency in merged:
                has[dependency] = max(has[dependency], newest[dependency][week])
            raises = [raise_to(service, dependency, has[dependency]) for dependency in merged]
            if name == EDITED and week == 6:
                raises.append(change(service / CI, "timeout-minutes: 10", "timeout-minutes: 30"))
            if any(raises):
                git(service, "commit", "--quiet", "--all", "--message", f"Week {week}")
                bumps += 1
            if week not in RELEASE_WEEKS or (number := RELEASE_WEEKS.index(week) + 1) % pace:
                continue
            done = update(service, "--no-suite", "--checkout", f"v1.{number}.0", PATH=path)
            updates += 1
            if done.returncode:
                conflicts.append((name, number))
                assert conflicts == [(EDITED, 5)], f"{name}, release {number}: {done.stdout}"
                solve(service, done.stdout)
            commit(service, f"Update to v1.{number}.0")
            for dependency in DEPENDENCIES:
                has[dependency] = max(has[dependency], released[number][dependency])
                assert not raise_to(service, dependency, has[dependency]), (name, number, dependency.pattern)
        fresh = created(template, tmp_path / name / "fresh", f"v1.{last}.0", **answers)
        wanted = {file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file()}
        assert contents(service).keys() == wanted, name
        for file in wanted - {CI if name == EDITED else ""}:
            texts = ((folder / file).read_text(encoding="utf-8") for folder in (service, fresh))
            assert differ_in_versions_only(*texts), f"{name}: {file}"
    assert conflicts == [(EDITED, 5)]
    passed = [suite(tmp_path / name / "my-service", renders.get(**FLEET[name][0]), uv) for name in WITH_SUITE]
    show(
        f"a year of a fleet: {len(FLEET)} services, {bumps} commits of their bots,"
        f" {len(RELEASE_WEEKS)} releases, {updates} updates, 1 conflict, the deliberate one;"
        f" {len(passed)} suites are green in the end, with {sum(passed)} tests"
    )
