"""What this service talks to: the outside world, each part behind a small class, made and pinged through svcs."""

from datetime import UTC, datetime

import svcs
{%- if cookiecutter.database == "postgresql" %}
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert
{%- endif %}

{% if cookiecutter.database == "postgresql" -%}
from .chassis import Command
from .chassis.migrate import Migrations
{% endif -%}
{% if cookiecutter.http_client == "httpx2" -%}
from .chassis.outgoing import register_http_client
{% endif -%}
{% if cookiecutter.database == "postgresql" -%}
from .chassis.postgres import Database
{% endif -%}
from .config import Config
{%- if cookiecutter.database == "postgresql" %}
from .models import Guest
{%- endif %}

# While the ping of a service fails, this instance is not ready, unless the service is listed here. List what all
# instances share: if it is down, no instance would be ready, and an answer without it is better than none.
NON_CRITICAL: frozenset[type] = frozenset()
{%- if cookiecutter.database == "postgresql" %}

MIGRATIONS = Migrations("{{ cookiecutter.package_name }}:migrations")  # The schema that this version needs.
{%- endif %}


class Clock:
    """The time, which a program can't know by itself."""

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)

    async def ping(self) -> None:
        """Fail while the machine's clock has not been set."""
        if self.now().year < 2026:
            raise RuntimeError(f"the clock says {self.now():%Y-%m-%d}")


{% if cookiecutter.database == "postgresql" -%}
class Guests:
    """Who was greeted, and how often. The statements are built once, not for each request."""

    _first = insert(Guest).values(name=bindparam("name"), visits=1)
    _add = _first.on_conflict_do_update(index_elements=[Guest.name], set_={"visits": Guest.visits + 1})
    _visits = select(Guest.visits).where(Guest.name == bindparam("name"))

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, name: str) -> None:
        """Count a visit of *name*; it is committed when this returns."""
        async with self._database.transaction() as session:
            await session.execute(self._add, {"name": name})

    async def visits(self, name: str) -> int:
        """Return how often *name* was here."""
        async with self._database.transaction() as session:
            return await session.scalar(self._visits, {"name": name}) or 0


async def seed(_arguments: object, _config: Config, services: svcs.Container) -> None:
    """Put the rows into a new database that `make dev` is to begin with."""
    guests = await services.aget(Guests)
    await guests.add("Ada")


COMMANDS: dict[str, Command] = {"migrate": MIGRATIONS.command, "seed": Command(seed, "fill a new database")}


{% endif -%}
def register_services(registry: svcs.Registry, config: Config) -> None:
    """Say how each service is made, and how one checks that it works."""
    registry.register_value(Clock, Clock(), ping=Clock.ping)
{%- if cookiecutter.http_client == "httpx2" %}
    # Ask the container for HttpClient, and use it as httpx2 documents it.
    register_http_client(registry, config.outgoing)
{%- endif %}
{%- if cookiecutter.database == "postgresql" %}
    database = Database(config.db, MIGRATIONS.check)
    registry.register_value(Database, database, ping=Database.ping, on_registry_close=database.close)
    registry.register_value(Guests, Guests(database))
{%- endif %}
