ENVIRONMENT: dict[str, str] = {}
SECRETS: dict[str, str] = {"books_password": "hunter2"}
POST: tuple[str, str] | None = None
