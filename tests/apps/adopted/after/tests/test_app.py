from pathlib import Path

import svcs
from books.app import create_app
from books.chassis import load
from books.config import Config
from starlette.testclient import TestClient


def test_lends_books_to_those_who_know_the_password(tmp_path: Path) -> None:
    (tmp_path / "books_password").write_text("hunter2")
    config = load(Config, {"APP_SECRETS_DIR": str(tmp_path), "APP_BOOKS_LIMIT": "4"}).config
    client = TestClient(create_app(config, svcs.Registry()))
    assert client.get("/books").status_code == 401
    assert client.get("/books", headers={"Authorization": "hunter2"}).json() == {"limit": 4}
