import hmac

import svcs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .config import Config


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    async def books(request: Request) -> Response:
        shown = request.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), config.books.password.reveal().encode()):
            return JSONResponse({}, 401)
        return JSONResponse({"limit": config.books.limit})

    return Starlette(routes=[Route("/books", books)])
