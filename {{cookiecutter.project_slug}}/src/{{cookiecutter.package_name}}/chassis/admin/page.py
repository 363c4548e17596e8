"""The page of the admin port: what a person wants to see first, without scripts and from one file.

It shows the last ten minutes, in fixed memory, to whoever has no Prometheus at hand.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from string import Template

from ..health import Health, Report
from ..lifecycle import Lifecycle
from ..lines import timestamp
from ..metrics import DURATION_BUCKETS, Metrics
from ..stacks import run_in_thread

SLOT_S, SLOTS = 10.0, 60
# When it ended, by the clock that nobody sets; requests and errors a second; p99 and lag in milliseconds.
Slot = tuple[float, float, float, float, float]
PAGE = Template(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
HINT = "<p>Whoever is not on this machine sees them with the header Authorization: Bearer, and the admin_token."


class History:
    """Slots of ten seconds, and the last twenty changes, each with its time in seconds since 1970."""

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, health: Health) -> None:
        self.slots: deque[Slot] = deque(maxlen=SLOTS)
        self.changes: deque[tuple[float, str]] = deque(maxlen=20)
        self._metrics, self._health, self._was_ready = metrics, health, False
        self._began, self._lag_s, self._counts = time.monotonic(), 0.0, metrics.totals()
        lifecycle.observe(lambda state: self.note(f"the instance is {state}"))

    def note(self, what: str) -> None:
        """Remember that something has changed."""
        self.changes.append((time.time(), what))

    def beat(self, lag_s: float) -> None:
        """Take in how late the event loop was, at each of its beats, and end the slot when it is over."""
        if (ready := self._health.was_ready()) != self._was_ready:
            self._was_ready = ready
            self.note(f"requests may {'' if ready else 'not '}be sent here")
        self._lag_s = max(self._lag_s, lag_s)
        if (took_s := time.monotonic() - self._began) >= SLOT_S:
            lag_s, self._lag_s, self._began = self._lag_s, 0.0, self._began + took_s
            # Many routes have many figures: the event loop does not wait until they are added up.
            run_in_thread("history", partial(self.end_slot, took_s, lag_s))

    def end_slot(self, took_s: float, lag_s: float) -> None:
        """Add a slot of *took_s* seconds, in which the event loop was late by *lag_s* at most."""
        before, self._counts = self._counts, self._metrics.totals()
        counts = self._counts - before
        total, most = counts["+Inf"], DURATION_BUCKETS[-1]
        p99_s = next((s for s in DURATION_BUCKETS if counts[str(s)] >= 0.99 * total), most) if total else 0.0
        slot = (total / took_s, counts["errors"] / took_s, p99_s * 1000, lag_s * 1000)
        self.slots.append((time.monotonic(), *slot))


class Html(str):
    """A text that needs no escaping any more."""


def render(
    about: Mapping[str, object],
    report: Report,
    detailed: bool,
    settings: Mapping[str, Mapping[str, object]],
    slots: Sequence[Slot],
    changes: Iterable[tuple[float, str]],
    slowest: Iterable[Mapping[str, object]] | None,
) -> str:
    """Return the page as HTML; *detailed*: with the texts of failing checks; *slowest*: None if they are not shown."""
    facts = (f"{key.replace('_', ' ')} {value}" for key, value in about.items() if value and key != "name")
    checks = (
        (
            check.name,
            Html(f"<span class='state {check.status}'>{check.status}</span>"),
            "critical" if check.critical else "non-critical",
            f"{check.duration_s * 1000:.1f} ms",
            (check.detail if detailed else check.error) or "",
        )
        for check in report.checks
    )

    def shown(setting: Mapping[str, object]) -> object:
        return "<secret>" if setting.get("set") else setting.get("value", "not set") or "-"

    columns = ("duration_ms", "status", "method", "route", "ended", "request_id")
    return PAGE.substitute(
        name=escape(str(about["name"])),
        state=report.word,
        reason=escape(report.reason or ""),
        facts=escape(" · ".join(facts)),
        charts=_charts(slots),
        checks=_rows(checks),
        slowest=_rows([what[column] for column in columns] for what in slowest or ()),
        hint=HINT if slowest is None else "",
        changes=_rows((timestamp(at), what) for at, what in changes),
        settings=_rows((label, shown(known), known["source"], known["help"]) for label, known in settings.items()),
    )


def _rows(rows: Iterable[Iterable[object]]) -> str:
    cells = (["<td>" + (cell if isinstance(cell, Html) else escape(str(cell))) for cell in row] for row in rows)
    return "".join(f"<tr>{''.join(row)}" for row in cells)


def _charts(slots: Sequence[Slot]) -> str:
    """Draw each figure over time; the newest slot is at the right, and the highest figure at the top."""
    now, wide_s, drawn = slots[-1][0] if slots else 0.0, SLOT_S * SLOTS / 150, ""
    units = {"requests": "/s", "errors (5xx)": "/s", "p99, up to": " ms", "event loop late": " ms"}
    for number, (name, unit) in enumerate(units.items(), 1):
        most, last = max((slot[number] for slot in slots), default=0.0), slots[-1][number] if slots else 0.0
        points = (f"{150 - (now - slot[0]) / wide_s:.1f},{29 - 28 * slot[number] / (most or 1):.1f}" for slot in slots)
        drawn += f"<figure>{name} <b>{last:.4g}{unit}</b> <small>at most {most:.4g}{unit}</small>"
        drawn += f"<svg viewBox='0 0 150 30'><polyline points='{' '.join(points)}'/></svg></figure>"
    return drawn
