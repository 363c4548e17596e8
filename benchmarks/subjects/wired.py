"""The subject on the chassis, with all that it brings. It is run inside a baked project."""

import importlib
import os
import sys
from pathlib import Path

PACKAGE = next(path.parent.name for path in Path("src").glob("*/__main__.py"))


def create_app(*_: object) -> object:
    """Import the subject; make as many time series as SERIES says."""
    from subject import app

    if count := int(os.environ.get("SERIES", "0")):
        from prometheus_client import Counter

        grown = Counter("grown", "Time series that a service may have.", ("shop", "article"))
        for number in range(count):
            grown.labels(f"shop{number % 100}", f"article{number}").inc()
    return app


def config() -> type:
    """Return the project's configuration class, with as many more settings as SETTINGS says."""
    own = importlib.import_module(f"{PACKAGE}.config").Config
    if not (count := int(os.environ.get("SETTINGS", "0"))):
        return own
    import environ

    more = {f"number{number}": environ.var(number, int, help="a number") for number in range(count)}
    group = environ.config(frozen=True)(type("Grown", (), more))
    return environ.config(prefix="APP", frozen=True)(type("Config", (own,), {"grown": environ.group(group)}))


def service() -> object:
    """Put the parts together as the project does, but for the app and the configuration."""
    own = importlib.import_module(f"{PACKAGE}.__main__").service()
    return cli.Service(own.name, config(), own.register, create_app, own.informs)


if __name__ == "__main__":
    cli = importlib.import_module(f"{PACKAGE}.chassis.cli")
    sys.exit(cli.main(PACKAGE, service, sys.argv[1:], os.environ, config))
