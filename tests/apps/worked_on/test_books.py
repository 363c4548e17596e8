import svcs
from my_service.app import create_app
from my_service.chassis import load
from my_service.config import Config
from my_service.services import register_services
from starlette.testclient import TestClient


def test_counts_the_books() -> None:
    registry = svcs.Registry()
    config = load(Config, {"APP_SHELF_SIZE": "4"}).config
    register_services(registry, config)
    assert TestClient(create_app(config, registry)).get("/books").text == "4"
