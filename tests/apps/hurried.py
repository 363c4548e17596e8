"""The probe, with little patience for clients, so that tests of it are quick."""

from __future__ import annotations

import os
import sys

import attrs
from my_service.chassis import Limits, Service, run

from apps import probe

LIMITS = Limits(head_timeout_s=0.5, body_timeout_s=0.5, linger_s=0.5)


def service() -> Service:
    return attrs.evolve(probe.service(), limits=LIMITS)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
