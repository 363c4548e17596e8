"""The routes, with the world outside replaced where it is registered: in the svcs registry."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import svcs
from starlette.testclient import TestClient

from {{ cookiecutter.package_name }}.app import create_app
from {{ cookiecutter.package_name }}.chassis import load
from {{ cookiecutter.package_name }}.config import Config
from {{ cookiecutter.package_name }}.services import Clock

Client = Callable[..., TestClient]


class StoppedClock(Clock):
    def now(self) -> datetime:
        return datetime(2020, 5, 1, 20, tzinfo=UTC)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    def make(greeting_token: str = "", **env: str) -> TestClient:
        if greeting_token:
            (tmp_path / "greeting_token").write_text(greeting_token)
        registry = svcs.Registry()
        registry.register_value(Clock, StoppedClock())
        return TestClient(create_app(load(Config, {"APP_SECRETS_DIR": str(tmp_path), **env}).config, registry))

    return make


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
