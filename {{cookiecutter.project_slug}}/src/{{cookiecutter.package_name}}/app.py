{%- if cookiecutter.web_framework == "starlette" -%}
"""Routes, and nothing else: what they need is handed in, what they decide is in `domain`."""

import hmac

import msgspec
import svcs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .config import Config
from .domain import greet
{% if cookiecutter.database == "postgresql" -%}
from .services import Clock, Guests
{%- else -%}
from .services import Clock
{%- endif %}


class Guest(msgspec.Struct):
    """What is sent to be greeted."""

    name: str


class Greeting(msgspec.Struct):
    """What is answered."""

    text: str


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    """Make the ASGI app from what it is given; nothing here reads the environment."""

    async def greet_by_path(request: Request) -> Response:
        return await answer(request, request.path_params["name"])

    async def greet_by_body(request: Request) -> Response:
        try:
            guest = msgspec.json.decode(await request.body(), type=Guest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPException(422, str(error)) from None
        except RecursionError:
            raise HTTPException(422, "JSON is nested too deeply") from None
{%- if cookiecutter.database == "postgresql" %}
        response = await answer(request, guest.name)
        async with svcs.Container(registry) as services:
            guests = await services.aget(Guests)
            await guests.add(guest.name.strip())
        return response

    async def visits(request: Request) -> Response:
        authorise(config, request.headers.get("authorization", ""))
        async with svcs.Container(registry) as services:
            guests = await services.aget(Guests)
            counted = {"visits": await guests.visits(request.path_params["name"])}
        return Response(msgspec.json.encode(counted), media_type="application/json")
{%- else %}
        return await answer(request, guest.name)
{%- endif %}

    async def answer(request: Request, name: str) -> Response:
        authorise(config, request.headers.get("authorization", ""))
        async with svcs.Container(registry) as services:
            clock = await services.aget(Clock)
            try:
                text = greet(name, clock.now(), config.greeting.evening)
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
        return Response(msgspec.json.encode(Greeting(text)), media_type="application/json")

    return Starlette(
        routes=[
            Route("/greetings/{name}", greet_by_path),
            Route("/greetings", greet_by_body, methods=["POST"]),
{%- if cookiecutter.database == "postgresql" %}
            Route("/guests/{name}", visits),
{%- endif %}
        ]
    )
{%- else -%}
"""Routes, and nothing else: what they need is handed in, what they decide is in `domain`."""

import hmac
from collections.abc import AsyncGenerator
from typing import Annotated

import svcs
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from .config import Config
from .domain import greet
{% if cookiecutter.database == "postgresql" -%}
from .services import Clock, Guests
{%- else -%}
from .services import Clock
{%- endif %}


class Guest(BaseModel):
    """What is sent to be greeted."""

    name: str


class Greeting(BaseModel):
    """What is answered."""

    text: str


def create_app(config: Config, registry: svcs.Registry) -> FastAPI:
    """Make the ASGI app from what it is given; nothing here reads the environment."""
    app = FastAPI(title="{{ cookiecutter.project_slug }}")

    async def authorised(request: Request) -> AsyncGenerator[svcs.Container]:
        authorise(config, request.headers.get("authorization", ""))
        async with svcs.Container(registry) as services:
            yield services

    async def answer(name: str, services: svcs.Container) -> Greeting:
        clock = await services.aget(Clock)
        try:
            return Greeting(text=greet(name, clock.now(), config.greeting.evening))
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/greetings/{name}")
    async def greet_by_path(name: str, services: Annotated[svcs.Container, Depends(authorised)]) -> Greeting:
        return await answer(name, services)

    @app.post("/greetings")
    async def greet_by_body(guest: Guest, services: Annotated[svcs.Container, Depends(authorised)]) -> Greeting:
{%- if cookiecutter.database == "postgresql" %}
        greeting = await answer(guest.name, services)
        guests = await services.aget(Guests)
        await guests.add(guest.name.strip())
        return greeting

    @app.get("/guests/{name}")
    async def visits(name: str, services: Annotated[svcs.Container, Depends(authorised)]) -> dict[str, int]:
        guests = await services.aget(Guests)
        return {"visits": await guests.visits(name)}
{%- else %}
        return await answer(guest.name, services)
{%- endif %}

    return app
{%- endif %}


def authorise(config: Config, shown: str) -> None:
    """Refuse a caller whose Authorization header *shown* lacks the token, if there is one.

    Raises:
        HTTPException: 401.
    """
    token = config.greeting.token
    if token.is_set and not hmac.compare_digest(shown.encode(), f"Bearer {token.reveal()}".encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
