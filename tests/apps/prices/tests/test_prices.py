"""The route, with the database itself."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import svcs
from starlette.testclient import TestClient

from my_service.app import create_app
from my_service.chassis import load
from my_service.config import Config
from my_service.services import Database, register_services

from .environment import ENVIRONMENT, SECRETS


@pytest.fixture
def prices() -> Iterator[None]:
    with psycopg.connect(ENVIRONMENT["APP_DB_URL"], password=SECRETS["db_password"]) as connection:
        connection.execute("CREATE TABLE prices (article text PRIMARY KEY, cents int)")
        connection.execute("INSERT INTO prices VALUES ('book', 1205)")
        connection.commit()
        yield
        connection.execute("DROP TABLE prices")


@pytest.mark.usefixtures("prices")
def test_says_a_price(tmp_path: Path) -> None:
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(value)
    config = load(Config, {"APP_SECRETS_DIR": str(tmp_path), **ENVIRONMENT}).config
    registry = svcs.Registry()
    register_services(registry, config)
    client = TestClient(create_app(config, registry))
    assert client.get("/prices/book").json() == {"price": "12.05 EUR"}
    assert client.get("/prices/car").status_code == 404
    asyncio.run(Database(config.db.url, config.db.password).ping())
