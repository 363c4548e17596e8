"""What this service talks to: the outside world, each part behind a small class, made and pinged through svcs."""

from datetime import UTC, datetime

import svcs

{% if cookiecutter.http_client == "httpx2" -%}
from .chassis.outgoing import register_http_client
{% endif -%}
from .config import Config

# While the ping of a service fails, this instance is not ready, unless the service is listed here. List what all
# instances share: if it is down, no instance would be ready, and an answer without it is better than none.
NON_CRITICAL: frozenset[type] = frozenset()


class Clock:
    """The time, which a program can't know by itself."""

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)

    async def ping(self) -> None:
        """Fail while the machine's clock has not been set."""
        if self.now().year < 2026:
            raise RuntimeError(f"the clock says {self.now():%Y-%m-%d}")


def register_services(registry: svcs.Registry, config: Config) -> None:
    """Say how each service is made, and how one checks that it works."""
    registry.register_value(Clock, Clock(), ping=Clock.ping)
{%- if cookiecutter.http_client == "httpx2" %}
    # Ask the container for HttpClient, and use it as httpx2 documents it.
    register_http_client(registry, config.outgoing)
{%- endif %}
