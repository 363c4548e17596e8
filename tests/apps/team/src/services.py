import svcs

from .config import Config

NON_CRITICAL: frozenset[type] = frozenset()


def register_services(registry: svcs.Registry, config: Config) -> None: ...
