"""Says of each rendered package whether it can be imported.

Each line of stdin is a folder and the name of a package in it; the answer is the exit status of the child
that has imported it. This process has the packages' dependencies already, so a child is quick.
"""

import importlib
import os
import sys
import traceback

DEPENDENCIES = (
    *(
        "environ",
        "fastapi",
        "httptools",
        "msgspec",
        "prometheus_client",
        "structlog",
        "svcs",
        "uvicorn",
        "uvloop",
    ),
)


def attempt(folder: str, package: str) -> None:
    """Import what a start of the service imports."""
    sys.path.insert(0, folder)
    for name in ("__main__", "app", "chassis", "config", "services"):
        importlib.import_module(f"{package}.{name}")


def main() -> None:
    for name in DEPENDENCIES:
        importlib.import_module(name)
    for line in sys.stdin:
        folder, package = line.rstrip("\n").split("\t")
        if not (child := os.fork()):
            try:
                attempt(folder, package)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
