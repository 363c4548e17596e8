"""What tests must give to this service."""

ENVIRONMENT: dict[str, str] = {
    "APP_DB_URL": "postgresql://app@127.0.0.1:PORT/app",
    "APP_PRICES_CURRENCY": "EUR",
}
SECRETS: dict[str, str] = {"db_password": "for tests alone"}
POST: tuple[str, str] | None = None
