"""The routes, with the world outside replaced where it is registered: in the svcs registry."""

import asyncio
{%- if cookiecutter.database == "postgresql" %}
from collections.abc import Callable, Iterator
from contextlib import ExitStack
{%- else %}
from collections.abc import Callable
{%- endif %}
from datetime import UTC, datetime
from pathlib import Path

import pytest
import svcs
from starlette.testclient import TestClient

from {{ cookiecutter.package_name }}.app import create_app
from {{ cookiecutter.package_name }}.chassis import load
from {{ cookiecutter.package_name }}.config import Config
{% if cookiecutter.database == "postgresql" -%}
from {{ cookiecutter.package_name }}.services import Clock, register_services

from .chassis.postgres import PASSWORD, database, port
{%- else -%}
from {{ cookiecutter.package_name }}.services import Clock
{%- endif %}

Client = Callable[..., TestClient]


class StoppedClock(Clock):
    def now(self) -> datetime:
        return datetime(2020, 5, 1, 20, tzinfo=UTC)


{% if cookiecutter.database == "postgresql" -%}
@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with ExitStack() as ends:

        def make(greeting_token: str = "", **env: str) -> TestClient:
            (tmp_path / "db_password").write_text(PASSWORD)
            if greeting_token:
                (tmp_path / "greeting_token").write_text(greeting_token)
            at = {"APP_SECRETS_DIR": str(tmp_path), "APP_DB_PORT": port(), "APP_DB_NAME": database()}
            config = load(Config, {**at, **env}).config
            registry = svcs.Registry()
            register_services(registry, config)
            registry.register_value(Clock, StoppedClock())
            # Inside `with` it has one event loop for all requests, as connections to a database need.
            client = ends.enter_context(TestClient(create_app(config, registry)))
            assert client.portal
            ends.callback(client.portal.call, registry.aclose)
            return client

        yield make


def test_counts_the_visits_of_a_guest(client: Client) -> None:
    service = client()
    for name in ("Ada", " Ada ", "Grace"):
        assert service.post("/greetings", json={"name": name}).status_code == 200
    assert service.get("/guests/Ada").json()["visits"] == 2
    assert service.get("/guests/Alan").json()["visits"] == 0


{% else -%}
@pytest.fixture
def client(tmp_path: Path) -> Client:
    def make(greeting_token: str = "", **env: str) -> TestClient:
        if greeting_token:
            (tmp_path / "greeting_token").write_text(greeting_token)
        registry = svcs.Registry()
        registry.register_value(Clock, StoppedClock())
        return TestClient(create_app(load(Config, {"APP_SECRETS_DIR": str(tmp_path), **env}).config, registry))

    return make


{% endif -%}
def test_greets_a_name_from_the_path(client: Client) -> None:
    assert client().get("/greetings/Ada").json() == {"text": "Good evening, Ada."}


def test_the_evening_begins_when_the_setting_says(client: Client) -> None:
    answer = client(APP_GREETING_EVENING="21").post("/greetings", json={"name": "Ada"})
    assert answer.json() == {"text": "Good afternoon, Ada."}


@pytest.mark.parametrize("body", ["", "{", '{"nme": "Ada"}', '{"name": 1}', '{"name": " "}'])
def test_refuses_a_body_that_names_nobody(client: Client, body: str) -> None:
    answer = client().post("/greetings", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_refuses_a_body_that_is_nested_too_deeply(client: Client) -> None:
    assert client().post("/greetings", content='{"a": ' + "[" * 100_000).status_code in (400, 422)


def test_asks_for_the_token_when_there_is_one(client: Client) -> None:
    guarded = client("s3cret")
    assert guarded.get("/greetings/Ada").status_code == 401
    assert guarded.get("/greetings/Ada", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert guarded.get("/greetings/Ada", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_a_clock_that_was_never_set_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="2020-05-01"):
        asyncio.run(StoppedClock().ping())
