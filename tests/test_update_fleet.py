"""A year of a fleet: five services whose Dependabot goes on each week, and a template released each month.

During the year only git and cruft run; in the end each service's own suite does. That an update locks anew
and runs the suite by itself is in test_update.py.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.project import Project, copy_of_the_template, git
from kit.updates import (
    PACKAGE,
    PROJECT,
    commit,
    contents,
    cruft,
    release,
    update,
    without_environments,
)
from updates.versions import differ_in_versions_only

pytestmark = pytest.mark.slow

RELEASE_WEEKS = (4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47, 52)
# The answers of a service, and each how many releases it takes one.
FLEET: Mapping[str, tuple[Mapping[str, str], int]] = {
    "every release": ({"deploy_to": "kubernetes"}, 1),
    "every fourth": ({"deploy_to": "swarm", "web_framework": "fastapi"}, 4),
    "every sixth": ({"deploy_to": "systemd"}, 6),
    "the last one": ({"deploy_to": "kubernetes", "web_framework": "fastapi"}, 12),
    "the last one too": ({"deploy_to": "swarm"}, 12),
}
# The one with the conflict: it has changed a line of the template's that release 11 changes too.
EDITED = "every release"


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


def at_work(project: Path, package: Path, month: int) -> None:
    """Change the template in a month, also right beside the lines that the robots change."""
    change(package / "chassis/metrics.py", r"\A(# Month \d+\.\n)?", f"# Month {month}.\n")
    pyproject, workflows = project / "pyproject.toml", project / ".github/workflows"
    changes: Mapping[int, Callable[[], object]] = {
        2: lambda: change(pyproject, r'    "uvicorn>', r'    "tzdata>=2026.1",\n\g<0>'),
        3: lambda: change(project / "Dockerfile", r"FROM ghcr\.io.*", r"# Month 3.\n\g<0>\n# Month 3."),
        5: lambda: change(pyproject, r'    "mypy>.*\n', ""),
        7: lambda: (workflows / "weekly.yml").rename(workflows / "monday.yml"),
        9: lambda: (project / ".github/tools/Dockerfile").unlink(),
        11: lambda: change(project / CI, "timeout-minutes: 10", "timeout-minutes: 12"),
    }
    changes.get(month, lambda: None)()


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


def suites(services: Mapping[str, Path], environments: Path, uv: Path) -> int:
    """Run the suites, and return how many tests have passed.

    Services with the same lock share an environment, and the contract's tests run in one of them: there the
    chassis is the same.
    """
    passed = 0
    for name, service in services.items():
        project = Project(service, {"package_name": "my_service"})
        project.run(uv, "lock", "--quiet")
        environment = environments / digest((service / "uv.lock").read_text(encoding="utf-8"))[:8]
        own = ("--ignore=tests/chassis",) if environment.exists() else ()
        said = project.run(uv, "run", "pytest", "-q", *own, UV_PROJECT_ENVIRONMENT=str(environment))
        (number,) = re.findall(r"^(\d+) passed in ", said, flags=re.MULTILINE) or [said]
        assert number.isdecimal(), f"{name}: {said}"
        passed += int(number)
    assert len([*environments.iterdir()]) == 2, "there is one lock for each framework"
    return passed


def test_a_year_of_a_fleet_without_a_conflict_but_the_deliberate_one(
    tmp_path: Path, uv: Path, show: Callable[[str], None]
) -> None:
    chance = random.Random(2026)
    template = copy_of_the_template(tmp_path / "deployable-service")
    newest = {each: year_of(each, template / PROJECT, chance) for each in DEPENDENCIES}
    released = [{dependency: numbers[0] for dependency, numbers in newest.items()}]
    for dependency, number in released[0].items():
        raise_to(template / PROJECT, dependency, number)
    commit(template, "Begin the year")
    git(template, "tag", "v1.0.0")
    for month, week in enumerate(RELEASE_WEEKS, 1):
        at_work(template / PROJECT, template / PACKAGE, month)
        # The template doesn't always have the newest: it is ahead of a service, or behind it.
        behind = 0 if week == 52 else 3
        released.append({each: numbers[week - chance.randint(0, behind)] for each, numbers in newest.items()})
        for dependency, number in released[-1].items():
            raise_to(template / PROJECT, dependency, number)
        release(template, f"v1.{month}.0", f"- Month {month}.")

    path = without_environments(tmp_path / "programs")
    updates = bumps = 0
    conflicts = []
    for name, (answers, pace) in FLEET.items():
        (tmp_path / name).mkdir()
        extra = ("--checkout", "v1.0.0", "--extra-context", json.dumps(answers))
        cruft(tmp_path / name, "create", str(template), *extra)
        service = tmp_path / name / "my-service"
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
            if week not in RELEASE_WEEKS or (month := RELEASE_WEEKS.index(week) + 1) % pace:
                continue
            done = update(service, "--no-suite", "--checkout", f"v1.{month}.0", PATH=path)
            updates += 1
            if done.returncode:
                conflicts.append((name, month))
                assert conflicts == [(EDITED, 11)], f"{name}, month {month}: {done.stdout}"
                solve(service, done.stdout)
            commit(service, f"Update to v1.{month}.0")
            for dependency in DEPENDENCIES:
                has[dependency] = max(has[dependency], released[month][dependency])
                assert not raise_to(service, dependency, has[dependency]), (name, month, dependency.pattern)
        cruft(
            tmp_path / name, "create", str(template), *extra, "--output-dir", "fresh", "--checkout", "v1.12.0"
        )
        fresh = tmp_path / name / "fresh/my-service"
        wanted = {file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file()}
        assert contents(service).keys() == wanted, name
        for file in wanted - {CI if name == EDITED else ""}:
            texts = ((folder / file).read_text(encoding="utf-8") for folder in (service, fresh))
            assert differ_in_versions_only(*texts), f"{name}: {file}"
    assert conflicts == [(EDITED, 11)]
    services = {name: tmp_path / name / "my-service" for name in FLEET}
    passed = suites(services, tmp_path / "environments", uv)
    show(
        f"a year of a fleet: {len(FLEET)} services, {bumps} commits of their bots,"
        f" {len(RELEASE_WEEKS)} releases, {updates} updates, 1 conflict, the deliberate one;"
        f" {len(services)} suites are green in the end, with {passed} tests"
    )
