"""What this service needs from its environment. Every field becomes a variable: ``APP_GREETING_EVENING``."""

import environ

from .chassis import Secret, Settings, integer, secret
{%- if cookiecutter.http_client == "httpx2" %}
from .chassis.outgoing import OutgoingSettings
{%- endif %}
{%- if cookiecutter.database == "postgresql" %}
from .chassis.postgres import PostgresSettings
{%- endif %}


@environ.config(frozen=True)
class Greeting:
    evening: int = environ.var(18, integer(12, 23), help="hour (UTC) from which it is evening")
    token: Secret = secret(optional=True, help="bearer token that callers must show; without it anyone may call")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    greeting: Greeting = environ.group(Greeting)
{%- if cookiecutter.http_client == "httpx2" %}
    outgoing: OutgoingSettings = environ.group(OutgoingSettings)
{%- endif %}
{%- if cookiecutter.database == "postgresql" %}
    db: PostgresSettings = environ.group(PostgresSettings)
{%- endif %}
