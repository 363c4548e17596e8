"""The template's half of a service: how it is configured, started, watched and stopped.

This is its public door: a service imports from here and from nowhere below, so that an update of the template can
replace everything behind it. It is never edited by hand, and it imports nothing of the service.
"""

from .cli import run
from .config import Settings, boolean, choice, host, integer, load, networks, seconds, secret, text
from .errors import ChassisError, ConfigurationError, Problem, SecretNotSetError
from .lifecycle import Lifecycle
from .logs import get_logger, request_id
from .secrets import Secret
from .service import Command, Limits, Service
from .workers import Worker

__all__ = [
    "ChassisError", "Command", "ConfigurationError", "Lifecycle", "Limits", "Problem", "Secret", "SecretNotSetError",
    "Service", "Settings", "Worker", "boolean", "choice", "get_logger", "host", "integer", "load", "networks",
    "request_id", "run", "seconds", "secret", "text",
]  # fmt: skip
