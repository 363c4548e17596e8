import environ

from .chassis import Secret, Settings, integer, secret


@environ.config(frozen=True)
class Books:
    limit: int = environ.var(3, integer(1, 99), help="books at a time")
    password: Secret = secret(help="what callers must show")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    books: Books = environ.group(Books)
