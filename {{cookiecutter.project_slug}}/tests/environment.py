"""What tests, and CI's try of the image, give to this service: add each setting and secret that you make required."""
{%- if cookiecutter.database == "postgresql" %}

from collections.abc import Callable

from .chassis.postgres import PASSWORD, database, port

# A function is called when the service is started: it gives what is known only then.
ENVIRONMENT: dict[str, str | Callable[[], str]] = {"APP_DB_PORT": port, "APP_DB_NAME": database}
SECRETS: dict[str, str] = {"db_password": PASSWORD}
{%- else %}

ENVIRONMENT: dict[str, str] = {}
SECRETS: dict[str, str] = {}
{%- endif %}

# A route that reads a body, with a body that it answers with 2xx; None if there is no such route.
# The test of the drain sends this body slowly.
POST: tuple[str, str] | None = ("/greetings", '{"name": "Ada"}')
