ENVIRONMENT: dict[str, str] = {"APP_DB_URL": "postgres://db"}
SECRETS: dict[str, str] = {"db_password": "hunter2"}
POST: tuple[str, str] | None = None
