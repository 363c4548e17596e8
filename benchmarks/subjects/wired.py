"""The subject on the chassis, with all that it brings. It is run inside a baked project."""

import os
import sys
from pathlib import Path

from my_service.chassis import Service, Settings, run
from my_service.config import Config
from my_service.services import NON_CRITICAL, register_services


def create_app(*_: object) -> object:
    """Import the subject; make as many time series as SERIES says."""
    from subject import app

    if count := int(os.environ.get("SERIES", "0")):
        from prometheus_client import Counter

        grown = Counter("grown", "Time series that a service may have.", ("shop", "article"))
        for number in range(count):
            grown.labels(f"shop{number % 100}", f"article{number}").inc()
    return app


def config() -> type[Settings]:
    """Return the project's configuration class, with as many more settings as SETTINGS says."""
    if not (count := int(os.environ.get("SETTINGS", "0"))):
        return Config
    import environ

    more = {f"number{number}": environ.var(number, int, help="a number") for number in range(count)}
    group = environ.config(frozen=True)(type("Grown", (), more))
    return environ.config(prefix="APP", frozen=True)(
        type("Config", (Config,), {"grown": environ.group(group)})
    )


if __name__ == "__main__":
    # The folder of a baked project is called as its distribution is.
    service = Service(Path.cwd().name, config(), register_services, create_app, NON_CRITICAL)
    sys.exit(run(service, sys.argv[1:], os.environ))
