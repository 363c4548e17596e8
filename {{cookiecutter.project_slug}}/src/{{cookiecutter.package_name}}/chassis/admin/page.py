"""The page of the admin port: what a person wants to see first, without scripts and from one file.

It shows the last ten minutes, in fixed memory, to whoever has no Prometheus at hand.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from html import escape

from ..health import Health, Report
from ..lifecycle import Lifecycle
from ..lines import timestamp
from ..metrics import DURATION_BUCKETS, Metrics
from ..stacks import run_in_thread

SLOT_S, SLOTS = 10.0, 60
# When it ended, by the clock that nobody sets; requests and errors a second; p99 and lag in milliseconds.
Slot = tuple[float, float, float, float, float]

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.state { display: inline-block; padding: 0 .8rem; border-radius: 1rem; line-height: 1.4;
  color: #fff; background: #b3261e }
.ready, .pass { background: #1a7f37 } .starting, .draining, .warn { background: #9a6700 }
table { border-collapse: collapse } td, th { text-align: left; padding: .25rem 1.5rem .25rem 0 }
td, th { border-bottom: 1px solid var(--line); vertical-align: top } th, .number { white-space: nowrap }
.number { text-align: right } small { opacity: .7 }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere } div { overflow-x: auto }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)) } figure { margin: 0 }
svg { width: 100%; fill: none; stroke: #2a78d6; border-bottom: 1px solid var(--line) }
@media (max-width: 40rem) { body { margin: 1rem auto } td, th { padding-right: .7rem } .wide { display: none } }
"""


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
        self._lag_s, now = max(self._lag_s, lag_s), time.monotonic()
        if (took := now - self._began) >= SLOT_S:
            lag_s, self._lag_s, self._began = self._lag_s, 0.0, now
            # Many routes have many figures: the event loop does not wait until they are added up.
            run_in_thread("history", lambda: self._end(now, took, lag_s))

    def _end(self, now: float, took: float, lag_s: float) -> None:
        before, self._counts = self._counts, self._metrics.totals()
        counts = self._counts - before
        total, most = counts["+Inf"], DURATION_BUCKETS[-1]
        p99_s = next((s for s in DURATION_BUCKETS if counts[str(s)] >= 0.99 * total), most) if total else 0.0
        self.slots.append((now, total / took, counts["errors"] / took, p99_s * 1000, lag_s * 1000))


def render(
    about: Mapping[str, object],
    report: Report,
    detailed: bool,
    settings: Mapping[str, Mapping[str, object]],
    links: Mapping[str, str],
    slots: Sequence[Slot],
    changes: Sequence[tuple[float, str]],
    slowest: Sequence[Mapping[str, object]] | None,
) -> str:
    """Return the page as HTML; *detailed*: with the texts of failing checks; *slowest*: None if they are not shown."""
    name = escape(str(about["name"]))
    checks = (
        f"<tr><td>{escape(check.name)}<td><span class='state {check.status}'>{check.status}</span>"
        f"<td>{'critical' if check.critical else 'non-critical'}<td class=number>{check.duration_s * 1000:.1f} ms"
        f"<td>{escape((check.detail if detailed else check.error) or '')}"
        for check in report.checks
    )
    rows = (
        f"<tr><td><code>{escape(label)}</code><td><code>{escape(_value(setting))}</code>"
        f"<td class=wide>{escape(str(setting['source']))}<td class=wide><small>{escape(str(setting['help']))}</small>"
        for label, setting in settings.items()
    )
    changed = (f"<tr><td>{timestamp(at)}<td>{escape(what)}" for at, what in changes)
    links_rows = (f"<tr><td><a href='{path}'>{path}</a><td>{text}" for path, text in links.items())
    facts = " · ".join(
        f"{key.replace('_', ' ')} {escape(str(value))}" for key, value in about.items() if value and key != "name"
    )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<link rel=icon href="data:,"><title>{name}: {report.word}</title><style>{STYLE}</style>
<h1>{name} <span class="state {report.word}">{report.word}</span></h1>
<p><small>{facts}</small></p>{f"<p>{escape(report.reason)}</p>" if report.reason else ""}
<h2>The last ten minutes</h2><div class=charts>{_charts(slots)}</div>
<h2>Checks</h2><div><table><tr><th>check<th>status<th>role<th>took<th>error{"".join(checks)}</table></div>
<h2>Slowest requests of late</h2>{_slowest(slowest)}
<h2>What changed of late</h2><div><table>{"".join(changed)}</table></div>
<h2>Look closer</h2><div><table>{"".join(links_rows)}</table></div>
<h2>Settings</h2><div><table><th>name<th>value<th class=wide>source<th class=wide>meaning{"".join(rows)}</table></div>
</html>
"""


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


def _slowest(requests: Sequence[Mapping[str, object]] | None) -> str:
    if requests is None:
        return "<p>Whoever is not on this machine sees them with the header Authorization: Bearer, and the admin_token."
    keys = ("duration_ms", "status", "method", "route", "ended", "request_id")
    rows = ("<tr>" + "".join(f"<td>{escape(str(what[key]))}" for key in keys) for what in requests)
    return f"<div><table><tr><th>ms<th>status<th>method<th>route<th>ended<th>request id{''.join(rows)}</table></div>"


def _value(setting: Mapping[str, object]) -> str:
    if "set" in setting:
        return "<secret>" if setting["set"] else "not set"
    return "-" if setting["value"] is None else str(setting["value"])
