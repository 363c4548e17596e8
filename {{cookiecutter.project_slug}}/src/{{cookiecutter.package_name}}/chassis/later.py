"""Packages that are executed when something of them is used, not when they are imported.

Some libraries bring along what a service never uses: uvicorn its command line and its reloader, svcs the test
client of Starlette, environ-config other ways to find secrets. Whoever uses such a part gets it as ever, only later.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType

POSTPONED = (
    *("uvicorn", "prometheus_client", "environ.secrets", "attr.validators", "attrs.validators"),
    *("structlog.testing", "structlog.threadlocal"),
    *("svcs.starlette", {% if cookiecutter.web_framework == "fastapi" %}"svcs.fastapi", {% endif %}"svcs.flask", "svcs.aiohttp"),
)

_lock = threading.RLock()


class _Later(ModuleType):
    """A module that executes itself when it is asked for what it does not have; its submodules can be had without."""

    def __getattr__(self, name: str) -> object:
        with _lock:
            part, path = f"{self.__name__}.{name}", self.__dict__.get("__path__", ())
            if "_execute" in self.__dict__ and PathFinder.find_spec(part, path):
                return import_module(part)
            # Nothing when another thread was first, or when it asks for its own parts while it is executed.
            if execute := self.__dict__.pop("_execute", None):
                try:
                    execute(self)
                except ImportError as error:
                    # As if its import had been tried and given up, which is what svcs does with those of frameworks.
                    raise AttributeError(f"{self.__name__} can't be imported: {error}") from error
                object.__setattr__(self, "__class__", ModuleType)
            return ModuleType.__getattribute__(self, name)


def postpone() -> None:
    """Put off what POSTPONED lists, as far as it is there and not imported yet."""
    for name in POSTPONED:
        if name not in sys.modules and (spec := _find(name)) and spec.loader:
            module = module_from_spec(spec)
            module.__class__ = _Later
            module.__dict__["_execute"] = spec.loader.exec_module
            sys.modules[name] = module


class _NoMocks(ModuleType):
    def __getattr__(self, name: str) -> type:
        return type(name, (), {})


@contextmanager
def without_mocks() -> Iterator[None]:
    """Spare svcs, which asks of some objects whether they are mocks, the import of unittest: here, none is one."""
    names = [name for name in ("unittest", "unittest.mock") if "unittest" not in sys.modules]
    for name in names:
        sys.modules[name] = _NoMocks(name)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _find(name: str) -> ModuleSpec | None:
    """Find a module without importing the package that it is in, as importlib.util.find_spec would."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return PathFinder.find_spec(name)
    above = _find(parent)
    return PathFinder.find_spec(name, above.submodule_search_locations) if above else None
