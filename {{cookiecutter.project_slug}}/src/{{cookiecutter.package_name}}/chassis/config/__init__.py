"""Configuration: environment variables and secret files become nested classes; every mistake is explained at once."""

from .loading import LoadedConfig, SettingSpec, SettingValue, describe, load, specs
from .settings import Settings, boolean, choice, host, integer, networks, seconds, secret, text

__all__ = ["LoadedConfig", "SettingSpec", "SettingValue", "Settings", "describe", "load", "secret", "specs"]
__all__ += ["boolean", "choice", "host", "integer", "networks", "seconds", "text"]
