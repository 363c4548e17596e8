"""The one place that reads the world: arguments and environment."""

import os
import sys

from .chassis import cli


def config() -> type:
    """Import the configuration class."""
    from .config import Config

    return Config


def service() -> cli.Service:
    """Put the parts of the service together."""
    from .app import create_app
    from .config import Config
    from .services import INFORMS, register_services

    return cli.Service("{{ cookiecutter.project_slug }}", Config, register_services, create_app, INFORMS)


def main() -> None:
    """Run the command line."""
    sys.exit(cli.main("{{ cookiecutter.project_slug }}", service, sys.argv[1:], os.environ, config))


if __name__ == "__main__":
    main()
