"""Configuration: environment variables and secret files become nested classes; every mistake is explained at once."""

from .loading import LoadedConfig, describe, load
from .settings import Settings, boolean, choice, host, integer, networks, seconds, secret, text

__all__ = [
    "LoadedConfig", "Settings", "boolean", "choice", "describe", "host",
    "integer", "load", "networks", "seconds", "secret", "text",
]  # fmt: skip
