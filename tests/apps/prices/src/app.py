"""Routes, and nothing else."""

import svcs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .config import Config
from .domain import price_tag
from .services import Database


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    """Make the ASGI app from what it is given."""

    async def price(request: Request) -> Response:
        async with svcs.Container(registry) as services:
            database = await services.aget(Database)
            cents = await database.cents(request.path_params["article"])
        if cents is None:
            raise HTTPException(404)
        return JSONResponse({"price": price_tag(cents, config.prices.currency)})

    return Starlette(routes=[Route("/prices/{article}", price)])
