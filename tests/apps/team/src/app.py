import svcs
from starlette.applications import Starlette

from .config import Config


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    return Starlette()
