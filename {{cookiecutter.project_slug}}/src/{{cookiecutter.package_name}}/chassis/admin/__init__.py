"""The admin port: health, metrics and introspection, on threads of its own: a stuck event loop can't silence it."""

from .endpoints import Admin
from .page import History
from .server import serve

__all__ = ["Admin", "History", "serve"]
