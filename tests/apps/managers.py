"""What tells a service manager of a service; only a service that is for systemd has it."""

import importlib
import importlib.util

_MODULE = "my_service.chassis.systemd"
NOTIFY = importlib.import_module(_MODULE).notify_systemd if importlib.util.find_spec(_MODULE) else None
