"""The settings of a service as people and tools read them; made from the classes, so never out of date."""

from .document import Files, SettingsDocument
from .tools import FORMATS

__all__ = ["FORMATS", "Files", "SettingsDocument"]
