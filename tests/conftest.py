"""Fixtures that several files use; what they are made of is in tests/kit."""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.collector import Collector, running_collector
from kit.command import Command, cookiecutter_command
from kit.engine import Engine
from kit.load import ROWS
from kit.project import CHECKED, COMBINATIONS, Bake, Project, Renders, combinations, copy_of_the_template
from kit.tools import tool
from kit.updates import render, small_template
from kit.world import World

# test_chassis.py runs the tests of the chassis in rendered services; what is in apps runs elsewhere too.
collect_ignore = ["apps", "chassis"]
# Begun first, so that no worker is left alone with one of them in the end.
LONGEST = (
    "test_chassis.py",
    "test_rolling_restart.py",
    "test_update.py",
    "test_generated.py",
    "test_recipes.py",
    "test_deploy_swarm.py",
    "test_image.py",
    "test_update_fleet.py",
    "test_balancers.py",
    "test_development.py",
    "test_real_service.py",
    "test_expand_contract.py",
    "test_operations_live.py",
    "test_introspection.py",
)


class Shown:
    """Puts what a test recorded as "shown" on the terminal, from whatever worker it comes."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, line in report.user_properties:
                if name == "shown":
                    self._terminal.ensure_newline()
                    self._terminal.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Shown(terminal))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was not looked at, and for want of what."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.stats.get("skipped", ()):
        # Hypothesis adds the example to a reason, from the second line on.
        reason = report.longrepr[2].removeprefix("Skipped: ").partition("\n")[0]
        reasons[reason][report.nodeid.partition("::")[0]] += 1
    for reason, files in sorted(reasons.items()):
        where = ", ".join(f"{count} in {file}" for file, count in sorted(files.items()))
        terminalreporter.write_line(f"not looked at: {where} ({reason})")


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Show a line where people see it: a figure that a test has measured."""
    return lambda line: record_property("shown", line)


@pytest.fixture(autouse=True)
def rows(show: Callable[[str], None]) -> Iterator[None]:
    """Show what came of the test's loads."""
    yield
    while ROWS:
        show(ROWS.pop(0))


@pytest.fixture(scope="session", autouse=True)
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let mypy read once what all projects install: it knows a file by its hash, wherever it is."""
    folder = tmp_path_factory.getbasetemp() / "mypy"
    os.environ["MYPY_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def what_mypy_read(mypy_cache: Path, renders: Renders) -> None:
    """The same for all workers of the session: what the project with the most dependencies installs."""
    if not mypy_cache.exists():
        renders.what_mypy_read(mypy_cache, CHECKED["hostile names, all"])


@pytest.fixture(scope="session")
def uv() -> Path:
    return tool("uv")


@pytest.fixture(scope="session")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Renders:
    """The renders of this session, which its workers share."""
    folder = tmp_path_factory.getbasetemp()
    return Renders((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "renders")


@pytest.fixture
def bake(renders: Renders, tmp_path: Path) -> Bake:
    """Render with these answers into a folder of the test's own; raise RefusedError if the hooks refuse."""
    return lambda **answers: renders.fresh(tmp_path, answers)


@pytest.fixture(params=combinations(COMBINATIONS))
def project(request: pytest.FixtureRequest, renders: Renders) -> Project:
    """A project for each of the named combinations; not to be changed."""
    return renders.get(**COMBINATIONS[request.param])


@pytest.fixture(scope="session")
def rendered(renders: Renders) -> Project:
    """The default service, with its environment; not to be changed."""
    return renders.with_environment()


@pytest.fixture(scope="session")
def fastapi(renders: Renders) -> Project:
    """The same with FastAPI."""
    return renders.with_environment(web_framework="fastapi")


@pytest.fixture(scope="session")
def cookiecutter() -> Iterator[Command]:
    """What runs cookiecutter's command as a person does."""
    with cookiecutter_command() as command:
        yield command


@pytest.fixture
def committed(renders: Renders, tmp_path: Path) -> Project:
    """The default service with its environment, as a repository with one commit; the test's own."""
    return renders.own(tmp_path, {}).commit()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a repository of its own; not to be changed."""
    return copy_of_the_template(tmp_path_factory.mktemp("template") / "deployable-service")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template without its chassis as a repository of its own; not to be changed."""
    return small_template(tmp_path_factory.mktemp("small") / "deployable-service")


@pytest.fixture(scope="session")
def first_render(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small template's service with its first commit and without a lock; not to be changed."""
    return render(f"git+{small.as_uri()}", tmp_path_factory.mktemp("first") / "home", tools=("git",))


@pytest.fixture
def newborn(first_render: Path, tmp_path: Path) -> Path:
    """The small template's service with its first commit and without a lock; the test's own."""
    return Path(shutil.copytree(first_render, tmp_path / "my-service", symlinks=True))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Docker, without the images of this file afterwards."""
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest, renders: Renders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """What starts services of one project: the default one, or what the file's ANSWERS say."""
    answers = getattr(request.module, "ANSWERS", {})
    with World(renders.with_environment(**answers), tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector
