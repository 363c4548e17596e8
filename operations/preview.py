"""Draw what the dashboard shows, without Grafana, from the same queries.

    python operations/preview.py http://127.0.0.1:9090 preview.svg --minutes 30

It is no picture of Grafana, whose panels look better: it shows what each query returns.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen
from xml.etree import ElementTree

WIDTH, ROW_PX, MARGIN_PX = 1200, 30, 14
INK, FAINT = "#1b2733", "#c9d1d9"
COLORS = ("#2a78d6", "#d4652a", "#1a7f37", "#8250df", "#9a6700", "#cf222e", "#0f7b8a", "#7a8794")
LINES_SHOWN = 4


class Prometheus:
    """A Prometheus, and the dashboard's variables in its queries."""

    def __init__(self, url: str, minutes: float, rate: str) -> None:
        self._url, self._end, self._seconds, self._rate = url.rstrip("/"), time.time(), minutes * 60, rate

    def ask(self, expression: str, now: bool) -> list[dict[str, Any]]:
        """Return the series of a query of the dashboard, over time or of now."""
        text = expression.replace("$__rate_interval", self._rate)
        text = text.replace("$job", ".*").replace("$instance", ".*")
        times: dict[str, float] = {"time": self._end}
        if not now:
            step = max(1.0, self._seconds / 120)
            times = {"start": self._end - self._seconds, "end": self._end, "step": step}
        path = "query" if now else "query_range"
        with urlopen(
            f"{self._url}/api/v1/{path}?{urlencode({'query': text, **times})}", timeout=60
        ) as answer:
            series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return series

    def place(self, at: float) -> float:
        """Return where a time lies, from 0 for the begin to 1 for the end."""
        return 1 - (self._end - at) / self._seconds


def legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return " ".join(word for word in pattern.split() if not word.startswith("{{"))


def spell(value: float, unit: str) -> str:
    """Write a figure as people read it."""
    match unit:
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes":
            return f"{value / 2**20:.0f} MiB"
        case "s" if value < 1:
            return f"{value * 1000:.3g} ms"
        case "s":
            return f"{value:.3g} s" if value < 3600 else f"{value / 86400:.2g} d"
        case "reqps":
            return f"{value:.3g}/s"
        case _:
            return f"{value:.3g}"


def add(parent: ElementTree.Element, kind: str, text: str = "", **attributes: object) -> ElementTree.Element:
    fields = {name.replace("_", "-"): f"{value}" for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, kind, fields)
    element.text = text or None
    return element


def draw(panel: dict[str, Any], prometheus: Prometheus) -> ElementTree.Element:
    """Draw one panel at the place that it has on the dashboard."""
    place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
    width = place["w"] * WIDTH / 24 - MARGIN_PX
    height = place["h"] * ROW_PX - MARGIN_PX
    drawn = ElementTree.Element(
        "g", {"transform": f"translate({place['x'] * WIDTH / 24 + 7:.0f} {place['y'] * ROW_PX})"}
    )
    add(drawn, "rect", width=f"{width:.0f}", height=height, fill="none", stroke=FAINT)
    add(drawn, "text", panel["title"], x=8, y=18, font_weight="bold", fill=INK)
    now = panel["type"] == "table"
    found = [
        (legend(target["legendFormat"], one["metric"]), one)
        for target in panel["targets"]
        for one in prometheus.ask(target["expr"], now)
    ]
    if now:
        for number, (words, one) in enumerate(found[:8]):
            y = 42 + number * 18
            add(drawn, "text", words[:44], x=8, y=y, fill=INK)
            add(drawn, "text", one["value"][1], x=width - 8, y=y, fill=INK, text_anchor="end")
        return drawn
    lines = [
        ([(at, float(value)) for at, value in one["values"] if math.isfinite(float(value))], words)
        for words, one in found
    ]
    # The highest lines are named.
    lines.sort(key=lambda line: -max((value for _, value in line[0]), default=0))
    most = max((value for line, _ in lines for _, value in line), default=0) or 1
    bottom = height - 20 - 14 * min(LINES_SHOWN, len(found))
    add(drawn, "text", spell(most, unit), x=8, y=36, fill=INK, font_size=11)
    add(drawn, "line", x1=8, x2=f"{width - 8:.0f}", y1=bottom, y2=bottom, stroke=FAINT)
    for number, (line, words) in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        points = " ".join(
            f"{8 + prometheus.place(at) * (width - 16):.1f},{bottom - value / most * (bottom - 42):.1f}"
            for at, value in line
        )
        add(drawn, "polyline", points=points, fill="none", stroke=color, stroke_width=1.5)
        if number < LINES_SHOWN:
            last = f": {spell(line[-1][1], unit)}" if line else ""
            y = bottom + 16 + 14 * number
            more = (
                f" (and {len(found) - LINES_SHOWN} more)"
                if number == LINES_SHOWN - 1 < len(found) - 1
                else ""
            )
            add(drawn, "text", f"{words[:44]}{last}{more}", x=8, y=y, fill=color, font_size=11)
    return drawn


def preview(prometheus: Prometheus, dashboard: dict[str, Any]) -> ElementTree.Element:
    """Draw the whole page."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * ROW_PX + 40
    style = "font: 13px system-ui, sans-serif"
    size = {"width": f"{WIDTH}", "height": f"{height}", "viewBox": f"0 0 {WIDTH} {height}"}
    page = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "style": style, **size}
    )
    add(page, "title", "A preview of the dashboard, drawn from its queries without Grafana")
    add(page, "rect", width=WIDTH, height=height, fill="white")
    note = "Drawn by operations/preview.py from the dashboard's queries; Grafana draws them otherwise."
    add(page, "text", note, x=7, y=height - 14, fill=INK)
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            y = panel["gridPos"]["y"] * ROW_PX + 20
            add(page, "text", panel["title"], x=7, y=y, fill=INK, font_size=16)
        else:
            page.append(draw(panel, prometheus))
    return page


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--minutes", type=float, default=60, help="how much of the past it shows (60)")
    parser.add_argument("--rate", default="1m", help="the window of rates: four scrapes at least (1m)")
    options = parser.parse_args(arguments)
    dashboard = json.loads(Path(__file__).with_name("dashboard.json").read_text(encoding="utf-8"))
    try:
        page = preview(Prometheus(options.prometheus, options.minutes, options.rate), dashboard)
    except HTTPError as error:
        sys.exit(f"Prometheus refused a query: {error.read().decode(errors='replace')}")
    except (URLError, TimeoutError) as error:
        sys.exit(f"No Prometheus answers at {options.prometheus}: {error}. Is the address right?")
    options.picture.write_text(ElementTree.tostring(page, encoding="unicode") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
