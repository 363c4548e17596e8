"""The one place that reads the world: arguments and environment."""

import os
import signal
import sys

from .healthcheck import healthcheck


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["healthcheck"]:
        # An orchestrator asks every few seconds; importing the service would take ten times as long.
        sys.exit(healthcheck(os.environ))
    for number in (signal.SIGINT, signal.SIGTERM):
        # PID 1 has no default handlers: a stop during the imports would go unheard.
        signal.signal(number, lambda *_: os._exit(0))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # A reload must not end what has not started yet; under nohup(1) the signal stays ignored.
        signal.signal(signal.SIGHUP, lambda *_: None)
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # For workers of gunicorn; this service is one process.
    from . import services
    from .app import create_app
    from .chassis import Service, run
{%- if cookiecutter.deploy_to == "systemd" %}
    from .chassis.systemd import notify_systemd
{%- endif %}
{%- if cookiecutter.tracing == "opentelemetry" %}
    from .chassis.tracing import start_tracing
{%- endif %}
    from .config import Config

    service = Service(
        "{{ cookiecutter.project_slug }}",
        Config,
        services.register_services,
        create_app,
        services.NON_CRITICAL,
        commands=getattr(services, "COMMANDS", {}),  # What services.py need not have.
        workers=getattr(services, "WORKERS", {}),
{%- if cookiecutter.tracing == "opentelemetry" %}
        tracing=start_tracing,
{%- endif %}
{%- if cookiecutter.deploy_to == "systemd" %}
        notify=notify_systemd,
{%- endif %}
    )
    sys.exit(run(service, sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
