"""Packages whose execution is put off, and come when they are used."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from {{ cookiecutter.package_name }}.chassis import later, run

PACKAGE = {
    "__init__.py": "import half.heavy\nvalue = 1\nfrom half.small import below\n",
    "heavy.py": "",
    "small.py": "import half\nbelow = 2\n",
    "other.py": "value = 3\n",
    "broken.py": "import nothing_of_that_name\n",
}


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package that brings along a heavy part, put off."""
    folder = tmp_path / "half"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(later, "POSTPONED", ("half", "half.broken", "nowhere", "nowhere.at_all"))
    for name in ("half", "half.heavy", "half.small", "half.other", "half.broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    later.postpone()
    return importlib.import_module("half")


def test_a_part_can_be_had_without_the_rest(half: ModuleType) -> None:
    assert importlib.import_module("half.small").below == 2
    assert half.other.value == 3
    assert "half.heavy" not in sys.modules


def test_what_is_used_comes_whole(half: ModuleType) -> None:
    assert (half.value, half.below) == (1, 2)
    assert "half.heavy" in sys.modules
    assert type(half) is ModuleType
    with pytest.raises(AttributeError, match="module 'half' has no attribute 'nothing'"):
        assert half.nothing


def test_threads_that_use_it_at_once_all_get_it(half: ModuleType) -> None:
    found: list[int] = []
    gate = threading.Barrier(8)

    def use() -> None:
        gate.wait()
        found.append(half.value + half.below)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8


def test_what_can_not_be_imported_is_not_there(half: ModuleType) -> None:
    broken = importlib.import_module("half.broken")
    for _ in range(2):
        with pytest.raises(AttributeError):
            assert broken.value


def test_what_is_imported_already_stays() -> None:
    import svcs
    import uvicorn

    later.postpone()
    assert (sys.modules["uvicorn"], sys.modules["svcs"]) == (uvicorn, svcs)
    assert type(uvicorn) is ModuleType


def test_mocks_stay_away_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "unittest"]:
        monkeypatch.delitem(sys.modules, name)
    with later.without_mocks():
        assert not isinstance(object(), importlib.import_module("unittest.mock").MagicMock)
    assert importlib.import_module("unittest.mock").MagicMock().anything
    real = sys.modules["unittest"]
    with later.without_mocks():
        assert sys.modules["unittest"] is real


def test_a_version_is_found_without_the_library_for_it() -> None:
    for name in ("{{ cookiecutter.project_slug }}", "prometheus-client", "uvicorn"):
        assert run._version(name) == importlib.metadata.version(name)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        run._version("nothing-of-that-name")
