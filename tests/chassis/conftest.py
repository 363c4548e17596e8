"""The services that the tests of the chassis start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.service import Service

from .start import Start, started, write_secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets directory of what `start` starts."""
    return write_secrets(tmp_path / "secrets")


@pytest.fixture
def start(tmp_path: Path, secrets: Path) -> Iterator[Start]:
    """What starts processes; all of them are ended with the test."""
    with Start(tmp_path, secrets) as start:
        yield start


@pytest.fixture
def own(start: Start) -> Service:
    """The probe, ready, for one test alone."""
    return start().ready()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The probe, ready, for all tests of a file that leave it as it is."""
    with started(tmp_path_factory) as process:
        yield process
