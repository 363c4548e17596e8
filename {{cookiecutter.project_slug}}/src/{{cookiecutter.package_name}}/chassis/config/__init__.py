"""Configuration: environment variables and secret files become nested classes; every mistake is explained at once."""

from .converters import LOG_LEVELS, boolean, choice, host, integer, networks, seconds, text
from .loading import LoadedConfig, SettingSpec, SettingValue, describe, load, specs
from .settings import Settings, secret

__all__ = ["LOG_LEVELS", "boolean", "choice", "host", "integer", "networks", "seconds", "text"]
__all__ += ["LoadedConfig", "SettingSpec", "SettingValue", "Settings", "describe", "load", "secret", "specs"]
