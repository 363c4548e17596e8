"""The page of the admin port: what a person wants to see first, without scripts and from one file."""

from collections.abc import Mapping
from html import escape

from ..health import Report

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
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
"""


def render(
    about: Mapping[str, object],
    report: Report,
    detailed: bool,
    settings: Mapping[str, Mapping[str, object]],
    links: Mapping[str, str],
) -> str:
    """Return the page as HTML; *detailed*: with the texts of failing checks; *links*: descriptions by path."""
    name = escape(str(about["name"]))
    checks = (
        f"<tr><td>{escape(check.name)}<td><span class='state {check.status}'>{check.status}</span>"
        f"<td>{'critical' if check.critical else 'non-critical'}<td class=number>{check.duration_s * 1000:.1f} ms"
        f"<td>{escape((check.detail if detailed else check.error) or '')}"
        for check in report.checks
    )
    rows = (
        f"<tr><td><code>{escape(label)}</code><td><code>{escape(_value(setting))}</code>"
        f"<td>{escape(str(setting['source']))}<td><small>{escape(str(setting['help']))}</small>"
        for label, setting in settings.items()
    )
    links_rows = (f"<tr><td><a href='{path}'>{path}</a><td>{text}" for path, text in links.items())
    facts = " · ".join(
        f"{key.replace('_', ' ')} {escape(str(value))}" for key, value in about.items() if value and key != "name"
    )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><link rel=icon href="data:,">
<title>{name}: {report.word}</title><style>{STYLE}</style>
<h1>{name} <span class="state {report.word}">{report.word}</span></h1>
<p><small>{facts}</small></p>{f"<p>{escape(report.reason)}</p>" if report.reason else ""}
<h2>Checks</h2><table><tr><th>check<th>status<th>role<th>took<th>error{"".join(checks)}</table>
<h2>Look closer</h2><table>{"".join(links_rows)}</table>
<h2>Settings</h2><table><tr><th>name<th>value<th>source<th>meaning{"".join(rows)}</table>
</html>
"""


def _value(setting: Mapping[str, object]) -> str:
    if "set" in setting:
        return "<secret>" if setting["set"] else "not set"
    return "-" if setting["value"] is None else str(setting["value"])
