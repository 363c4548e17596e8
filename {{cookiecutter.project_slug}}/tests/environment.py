"""What tests must give to this service: add each setting and secret that you make required."""

ENVIRONMENT: dict[str, str] = {}
SECRETS: dict[str, str] = {}

# A route that reads a body, with a body that it answers with 2xx; None if there is no such route.
# The test of the drain sends this body slowly.
POST: tuple[str, str] | None = ("/greetings", '{"name": "Ada"}')
