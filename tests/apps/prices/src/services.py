"""What this service talks to."""

import psycopg
import svcs

from .chassis import Secret
from .config import Config

NON_CRITICAL: frozenset[type] = frozenset()


class Database:
    """The prices; each question has a connection of its own."""

    def __init__(self, url: str, password: Secret) -> None:
        self._url, self._password = url, password

    async def cents(self, article: str) -> int | None:
        """Return the price of an article, if it has one."""
        async with await self._connect() as connection:
            answer = await connection.execute("SELECT cents FROM prices WHERE article = %s", (article,))
            row = await answer.fetchone()
            return row[0] if row else None

    async def ping(self) -> None:
        """Fail while no question would be answered."""
        async with await self._connect() as connection:
            await connection.execute("SELECT 1")

    async def _connect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(self._url, password=self._password.reveal())


def register_services(registry: svcs.Registry, config: Config) -> None:
    """Say how the database is made, and how one checks that it works."""
    database = Database(config.db.url, config.db.password)
    registry.register_value(Database, database, ping=Database.ping)
