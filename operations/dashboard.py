"""The dashboard for all services of this template: its panels as data, and Grafana's JSON made of them.

    python operations/dashboard.py     writes dashboard.json next to this file

Import that into Grafana, or provision it as a file. It asks for a data source, a service and an instance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the variables of the page have chosen.
CHOSEN = 'job=~"$job", instance=~"$instance"'
REQUESTS = "http_server_request_duration_seconds"
CALLS = "http_client_request_duration_seconds"
# As in rules.yaml: a balancer's probes are no requests.
ASKED = f'{CHOSEN}, http_route!="/-/ready"'
# Processes that are no service of this template have such series too.
OURS = " and on (job, instance) app_info"
PER_SECOND = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


@dataclass(frozen=True)
class Panel:
    """One picture: what its figures mean, their unit by Grafana's name, and a query for each kind of line.

    A query is a pair of the expression and the name of its lines. A *table* shows the present only.
    """

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    table: bool = False


def quantile(share: str, by: str = "job") -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({REQUESTS}_bucket{{{ASKED}}}{PER_SECOND})))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "What clients see": (
        Panel(
            "Requests",
            "Requests a second, by the first digit of their status.",
            "reqps",
            (
                (
                    f"sum by (job, kind) (label_replace(rate({REQUESTS}_count{{{ASKED}}}{PER_SECOND}), "
                    '"kind", "${1}xx", "http_response_status_code", "(.).."))',
                    "{{job}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Errors",
            "The share of requests that are answered with a 5xx. The objective is 0.1 %.",
            "percentunit",
            (
                (
                    f'(sum by (job) (rate({REQUESTS}_count{{{ASKED}, http_response_status_code=~"5.."}}'
                    f"{PER_SECOND})) or 0 * sum by (job) (rate({REQUESTS}_count{{{ASKED}}}{PER_SECOND})))"
                    f" / sum by (job) (rate({REQUESTS}_count{{{ASKED}}}{PER_SECOND}))",
                    "{{job}}",
                ),
            ),
        ),
        Panel(
            "Duration",
            "Half of the requests, and 99 of 100, take no longer. The objective is 0.5 s for 99 of 100.",
            "s",
            ((quantile("0.5"), "{{job}} p50"), (quantile("0.99"), "{{job}} p99")),
        ),
        Panel(
            "Slowest routes",
            "99 of 100 requests to a route take no longer: the five slowest routes.",
            "s",
            ((f"topk(5, {quantile('0.99', 'job, http_route')})", "{{job}} {{http_route}}"),),
        ),
        Panel(
            "Budget",
            "How many times faster than allowed the budget of 30 days burns, over the last hour.",
            "none",
            (
                ('job:http_errors:ratio_rate1h{job=~"$job"} / 0.001', "{{job}} errors"),
                ('job:http_slow:ratio_rate1h{job=~"$job"} / 0.01', "{{job}} slow"),
            ),
        ),
        Panel(
            "Alerts",
            "What is firing: runbook.md has a section for each.",
            "none",
            (('ALERTS{job=~"$job", alertstate="firing"}', "{{job}} {{alertname}} {{instance}}"),),
            table=True,
        ),
    ),
    "How full it is": (
        Panel(
            "In flight",
            "Requests that are not answered yet.",
            "none",
            ((f"http_server_active_requests{{{CHOSEN}}}", "{{job}} {{instance}}"),),
        ),
        Panel(
            "Connections",
            "Clients that are connected; a balancer keeps some without a request.",
            "none",
            ((f"http_server_open_connections{{{CHOSEN}}}", "{{job}} {{instance}}"),),
        ),
        Panel(
            "Event loop late",
            "The share of time in which the event loop was late; EventLoopLate asks for 10 %.",
            "percentunit",
            ((f"rate(event_loop_lag_seconds_sum{{{CHOSEN}}}{PER_SECOND})", "{{job}} {{instance}}"),),
        ),
        Panel(
            "Event loop lag",
            "99 of 100 beats of the event loop are no later than this.",
            "s",
            (
                (
                    "histogram_quantile(0.99, sum by (job, instance, le) "
                    f"(rate(event_loop_lag_seconds_bucket{{{CHOSEN}}}{PER_SECOND})))",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "CPU",
            "Cores in use; one process can't use much more than one.",
            "none",
            (
                (
                    f"rate(process_cpu_seconds_total{{{CHOSEN}}}{PER_SECOND}){OURS}",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Resident memory. What only grows is a leak.",
            "bytes",
            (
                (
                    f"process_resident_memory_bytes{{{CHOSEN}}}{OURS}",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Open files",
            "The share of the files and connections that the process may open.",
            "percentunit",
            (
                (
                    f"process_open_fds{{{CHOSEN}}} / process_max_fds{OURS}",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
    ),
    "Workers": (
        Panel(
            "Items of work",
            "Items a second, done and failed.",
            "ops",
            (
                (
                    "sum by (job, worker, outcome) "
                    f"(rate(worker_item_duration_seconds_count{{{CHOSEN}}}{PER_SECOND}))",
                    "{{job}} {{worker}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Duration of an item",
            "99 of 100 items of work take no longer.",
            "s",
            (
                (
                    "histogram_quantile(0.99, sum by (job, worker, le) "
                    f"(rate(worker_item_duration_seconds_bucket{{{CHOSEN}}}{PER_SECOND})))",
                    "{{job}} {{worker}}",
                ),
            ),
        ),
        Panel(
            "Without progress",
            "Time since a worker's last sign of progress; 100 % is its limit, and WorkerStuck.",
            "percentunit",
            (
                (
                    f"worker_progress_age_seconds{{{CHOSEN}}} / worker_stall_limit_seconds",
                    "{{job}} {{instance}} {{worker}}",
                ),
            ),
        ),
    ),
    "Database": (
        Panel(
            "Connections in use",
            "The share of the pool that transactions have. At 100 % the next ones wait.",
            "percentunit",
            (
                (
                    f'db_client_connection_count{{{CHOSEN}, db_client_connection_state="used"}}'
                    " / ignoring (db_client_connection_state) db_client_connection_max",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Wait for a connection",
            "99 of 100 transactions have a connection of the pool after this time.",
            "s",
            (
                (
                    "histogram_quantile(0.99, sum by (job, le) "
                    f"(rate(db_client_connection_wait_time_seconds_bucket{{{CHOSEN}}}{PER_SECOND})))",
                    "{{job}}",
                ),
            ),
        ),
        Panel(
            "Without a connection",
            "Transactions that wait, and those of five minutes that got none in time (DatabasePoolUsedUp).",
            "none",
            (
                (f"sum by (job) (db_client_connection_pending_requests{{{CHOSEN}}})", "{{job}} waiting"),
                (
                    f"sum by (job) (increase(db_client_connection_timeouts_total{{{CHOSEN}}}[5m]))",
                    "{{job}} refused",
                ),
            ),
        ),
    ),
    "Outgoing calls": (
        Panel(
            "Calls",
            "Calls to other services a second, each attempt by itself, by the first digit of their status.",
            "reqps",
            (
                (
                    "sum by (job, server_address, kind) (label_replace("
                    f"rate({CALLS}_count{{{CHOSEN}}}{PER_SECOND}), "
                    '"kind", "${1}xx", "http_response_status_code", "(.).."))',
                    "{{job}} {{server_address}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Duration of a call",
            "99 of 100 calls take no longer.",
            "s",
            (
                (
                    "histogram_quantile(0.99, sum by (job, server_address, le) "
                    f"(rate({CALLS}_bucket{{{CHOSEN}}}{PER_SECOND})))",
                    "{{job}} {{server_address}}",
                ),
            ),
        ),
        Panel(
            "Failed and repeated calls",
            "Failed calls a second, and repeated ones; without budget none is repeated (RetriesUsedUp).",
            "reqps",
            (
                (
                    "sum by (job, server_address, error_type) "
                    f'(rate({CALLS}_count{{{CHOSEN}, error_type!=""}}{PER_SECOND}))',
                    "{{job}} {{server_address}} {{error_type}}",
                ),
                (
                    "sum by (job, server_address) "
                    f'(rate(http_client_retries_total{{{CHOSEN}, made="true"}}{PER_SECOND}))',
                    "{{job}} {{server_address}} repeated",
                ),
                (
                    "sum by (job, server_address) "
                    f'(rate(http_client_retries_total{{{CHOSEN}, made="false"}}{PER_SECOND}))',
                    "{{job}} {{server_address}} without budget",
                ),
            ),
        ),
    ),
    "Instances": (
        Panel(
            "Ready",
            "How many instances may be sent requests, and how many there are.",
            "none",
            (
                (f"sum by (job) (readiness{{{CHOSEN}}})", "{{job}} ready"),
                (f"count by (job) (readiness{{{CHOSEN}}})", "{{job}} all"),
            ),
        ),
        Panel(
            "Checks",
            "1: the check passed when it ran last.",
            "none",
            ((f"min by (job, name) (readiness_check{{{CHOSEN}}})", "{{job}} {{name}}"),),
        ),
        Panel(
            "Starts and drains",
            "Instances that start or drain, and how often processes were started in the last hour.",
            "none",
            (
                (
                    "sum by (job, lifecycle_state) (lifecycle_state"
                    f'{{{CHOSEN}, lifecycle_state=~"starting|draining"}})',
                    "{{job}} {{lifecycle_state}}",
                ),
                (
                    f"sum by (job) (changes(process_start_time_seconds{{{CHOSEN}}}[1h]){OURS})",
                    "{{job}} started again",
                ),
            ),
        ),
    ),
    "Refused and lost": (
        Panel(
            "Refused",
            "What the server refused in five minutes, by reason.",
            "none",
            (
                (
                    f"sum by (job, reason) (increase(http_server_refusals_total{{{CHOSEN}}}[5m]))",
                    "{{job}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Lost",
            "In five minutes: log lines that nobody read, exceptions that nobody took, failures of workers.",
            "none",
            (
                (f"sum by (job) (increase(log_lines_lost_total{{{CHOSEN}}}[5m]))", "{{job}} log lines"),
                (f"sum by (job) (increase(uncaught_exceptions_total{{{CHOSEN}}}[5m]))", "{{job}} exceptions"),
                (
                    f"sum by (job, worker) (increase(worker_failures_total{{{CHOSEN}}}[5m]))",
                    "{{job}} {{worker}} failed",
                ),
            ),
        ),
        Panel(
            "Secrets",
            "0: the last reload failed, and the old ones are in use.",
            "none",
            ((f"min by (job) (secrets_last_reload_successful{{{CHOSEN}}})", "{{job}}"),),
        ),
    ),
    "Fleet": (
        Panel(
            "What runs",
            "How many instances run which version, on which release of the template.",
            "none",
            (
                (
                    'count by (job, version, revision, template, python) (app_info{job=~"$job"})',
                    "{{job}} {{version}}",
                ),
            ),
            table=True,
        ),
        Panel(
            "Age of the template",
            "Since the release of the template that a service has; TemplateOld asks for 180 days.",
            "s",
            (('time() - min by (job) (template_release_timestamp_seconds{job=~"$job"})', "{{job}}"),),
        ),
    ),
}


def panel(described: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Return a panel as Grafana has it."""
    kind = "table" if described.table else "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            **({"instant": True, "range": False, "format": "table"} if described.table else {"range": True}),
        }
        for place, (expression, legend) in enumerate(described.queries)
    ]
    return {
        "id": number,
        "type": kind,
        "title": described.title,
        "description": described.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": described.unit, "min": 0}, "overrides": []},
        "options": {} if described.table else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": targets,
    }


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable that is chosen among the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """Return the whole page as Grafana has it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        heading = {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append({**heading, "gridPos": {"x": 0, "y": y, "w": WIDTH * COLUMNS, "h": 1}})
        for place, described in enumerate(row):
            across, down = place % COLUMNS, place // COLUMNS
            panels.append(panel(described, len(panels) + 1, across * WIDTH, y + 1 + down * HEIGHT))
        y += 1 + -(-len(row) // COLUMNS) * HEIGHT
    return {
        "uid": "deployable-service",
        "title": "Services",
        "description": "All services of the template deployable-service.",
        "schemaVersion": 39,
        "tags": ["deployable-service"],
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("job", "Service", "label_values(app_info, job)"),
                variable("instance", "Instance", 'label_values(app_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    text = json.dumps(dashboard(), indent=1) + "\n"
    Path(__file__).with_name("dashboard.json").write_text(text, encoding="utf-8")
