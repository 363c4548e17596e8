"""The fixtures of the contract's tests."""

from collections.abc import Iterator

import pytest

from .process import Process, Start
from .process import start as start


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The service, ready, for all tests of a file that leave it as it is."""
    with Start(tmp_path_factory.mktemp("service")) as start:
        yield start().ready()
