"""Print as JSON which methods a package overrides that another package does not document; runs in a service.

A method counts if its name begins with an underscore, or if its class is of uvicorn.protocols, where only the
methods of asyncio's Protocol are documented.
"""

import asyncio
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator


def overridden(package: str) -> Iterator[str]:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        module = importlib.import_module(found.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                yield from (f"{found.name}.{cls.__qualname__}.{name}" for name in of_class(cls))


def of_class(cls: type) -> set[str]:
    root = cls.__module__.partition(".")[0]
    foreign = [
        base for base in cls.__mro__[1:] if base.__module__.partition(".")[0] not in (root, "builtins")
    ]
    # What metaclasses (of Enum, of Protocol) put into a class was not written there.
    own = [
        name for name, member in vars(cls).items() if getattr(member, "__module__", root) == cls.__module__
    ]
    return {name for name in own for base in foreign if name in vars(base) and not is_public(name, base)}


def is_public(name: str, base: type) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return True
    if base.__module__.startswith("uvicorn.protocols"):
        return hasattr(asyncio.Protocol, name)
    return not name.startswith("_")


if __name__ == "__main__":
    print(json.dumps(sorted(overridden(sys.argv[1]))))
