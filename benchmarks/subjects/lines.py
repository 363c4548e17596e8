"""Log lines by the chassis or by the standard library; how many a second, to stderr: lines.py KIND COUNT."""

import importlib
import logging
import sys
import time

FIELDS = {"customer": "c-4711", "items": 3, "total": 17.5}


def log_lines(kind: str, count: int) -> None:
    if kind == "wired":
        logs = importlib.import_module("my_service.chassis.logs")
        logs.configure("info", "json")
        chassis = logs.get_logger("shop")
        began = time.perf_counter()
        for _ in range(count):
            chassis.info("ordered", **FIELDS)
    else:
        formatter = importlib.import_module("pythonjsonlogger.json").JsonFormatter
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.basicConfig(handlers=[handler], level="INFO")
        shop = logging.getLogger("shop")
        began = time.perf_counter()
        for _ in range(count):
            shop.info("ordered", extra=FIELDS)
    print(count / (time.perf_counter() - began), file=sys.stderr)


if __name__ == "__main__":
    log_lines(sys.argv[1], int(sys.argv[2]))
