"""What this service must be given to start in tests: add each setting and secret that you make required."""

ENVIRONMENT: dict[str, str] = {}
SECRETS: dict[str, str] = {}
