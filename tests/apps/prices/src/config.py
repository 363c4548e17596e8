"""What this service needs from its environment."""

import environ

from .chassis import Secret, Settings, secret


@environ.config(frozen=True)
class Db:
    url: str = environ.var(help="where the database is, without a password")
    password: Secret = secret(help="the password of its user")


@environ.config(frozen=True)
class Prices:
    currency: str = environ.var(help="in which prices are given, such as EUR")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    db: Db = environ.group(Db)
    prices: Prices = environ.group(Prices)
