import environ

from .chassis import Secret, Settings, secret


@environ.config(frozen=True)
class Db:
    url: str = environ.var(help="where the database is")
    password: Secret = secret(help="its password")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    db: Db = environ.group(Db)
