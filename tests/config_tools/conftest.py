"""The service whose settings the tools bring, and folders that they can read."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.followers import Instance
from kit.formats import Maker
from kit.project import Project


@pytest.fixture(scope="session")
def project(rendered: Project) -> Project:
    return rendered


@pytest.fixture(scope="module")
def make(rendered: Project) -> Iterator[Maker]:
    """Make files of a format, with all values but those that it refuses."""
    maker = Maker(rendered)
    yield maker
    maker.end()


@pytest.fixture
def instance(rendered: Project, tmp_path: Path) -> Iterator[Instance]:
    instance = Instance(rendered, tmp_path)
    yield instance
    instance.end()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write to, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)
