"""Draw what table.py and growth.py wrote into a folder as table.json and growth.json: chart.py FOLDER.

Two pictures, table.svg and growth.svg, by the standard library alone: they are bars, lines and words.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

WIDTH = 960
INK, FAINT, MET, UNMET, OTHER = "#1b2733", "#c9d1d9", "#2a78d6", "#d4652a", "#7a8794"
FONT = "font: 13px system-ui, sans-serif"


class Picture:
    """A picture of so many pixels, on white, so that it can be read on any page."""

    def __init__(self, width: int, height: int, title: str) -> None:
        size = {"width": str(width), "height": str(height), "viewBox": f"0 0 {width} {height}"}
        self._root = ElementTree.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "style": FONT, **size}
        )
        ElementTree.SubElement(self._root, "title").text = title
        self.box(0, 0, width, height, "white")

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
        ElementTree.SubElement(self._root, "rect", {**place, "fill": fill})

    def line(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1) -> None:
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        ElementTree.SubElement(
            self._root,
            "polyline",
            {"points": where, "fill": "none", "stroke": stroke, "stroke-width": f"{width:g}"},
        )

    def dot(self, x: float, y: float, fill: str, radius: float = 3.5) -> None:
        place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:g}"}
        ElementTree.SubElement(self._root, "circle", {**place, "fill": fill})

    def text(self, x: float, y: float, words: str, anchor: str = "start", fill: str = INK) -> None:
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": fill}
        ElementTree.SubElement(self._root, "text", place).text = words

    def write(self, path: Path) -> None:
        ElementTree.indent(self._root, " ")
        path.write_text(ElementTree.tostring(self._root, encoding="unicode") + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw how many times better than it must be each measure is: to the right of the line is good."""
    left, top, step, right = 430, 64, 26, 140
    picture = Picture(WIDTH, top + step * len(rows) + 34, "How each measure stands to what it must be")

    def place(row: Mapping[str, Any], value: float) -> float:
        times = value / row["must"] if row["sign"] == ">=" else row["must"] / value
        # From a quarter to eight times as good, each doubling the same length.
        share = (math.log2(min(8, max(0.25, times))) + 2) / 5
        return left + share * (WIDTH - left - right)

    picture.text(
        16, 26, "How many times as good as it must be; the mark is the aim, the thin line all rounds"
    )
    bottom = top + step * len(rows)
    for times in (0.25, 0.5, 1, 2, 4, 8):
        x = place({"sign": ">=", "must": 1}, times)
        picture.line([(x, top - 10), (x, bottom)], INK if times == 1 else FAINT)
        picture.text(x, bottom + 20, "must" if times == 1 else f"{times:g} times", "middle")
    for number, row in enumerate(rows):
        y = top + step * number
        met = row["median"] >= row["must"] if row["sign"] == ">=" else row["median"] <= row["must"]
        color = MET if met else UNMET
        start, end = place(row, row["must"]), place(row, row["median"])
        against = f" / {row['against']}" if row["against"] else ""
        picture.text(left - 12, y + 9, f"{row['measure']}{against}", "end")
        picture.box(min(start, end), y - 3, max(2, abs(end - start)), 14, color)
        picture.line([(place(row, value), y + 4) for value in (min(row["values"]), max(row["values"]))], INK)
        aim = place(row, row["aim"])
        picture.line([(aim, y - 6), (aim, y + 14)], INK, 2.5)
        must = f"({row['sign'].replace('>=', '≥').replace('<=', '≤')} {row['must']:g})"
        picture.text(WIDTH - right + 12, y + 9, f"{row['median']:.2f}{row['unit']} {must}", fill=color)
    return picture


@dataclass(frozen=True)
class Axes:
    """Two logarithmic axes: where they lie, and their first and last figures."""

    left: float
    top: float
    width: float
    height: float
    across: tuple[float, float]
    upwards: tuple[float, float]

    def at(self, across: float, upwards: float) -> tuple[float, float]:
        x, y = _share(across, self.across), _share(upwards, self.upwards)
        return self.left + x * self.width, self.top + (1 - y) * self.height


def _share(value: float, ends: tuple[float, float]) -> float:
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def growth(growths: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw a small picture for each cost, both axes with each tenfold the same length."""
    columns, width, height = 3, WIDTH / 3, 210
    picture = Picture(WIDTH, math.ceil(len(growths) / columns) * height + 40, "How cost grows")
    for place, color, words in ((20, MET, "the service"), (130, OTHER, "bare Starlette on stock uvicorn")):
        picture.dot(place, 20, color)
        picture.text(place + 10, 25, words)
    for number, one in enumerate(growths):
        x, y = (number % columns) * width + 54, number // columns * height + 70
        sizes = [max(size, 1) for size in one["sizes"]]
        every = [value for row in one["values"].values() for value in row]
        least, most = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
        axes = Axes(x, y, width - 92, height - 84, (sizes[0], sizes[-1]), (10.0**least, 10.0**most))
        picture.text(x - 40, y - 14, f"{one['name']}, {one['unit']}")
        for level in range(least, most + 1):
            begin = axes.at(sizes[0], 10.0**level)
            picture.line([begin, axes.at(sizes[-1], 10.0**level)], FAINT)
            picture.text(x - 6, begin[1] + 4, f"{10.0**level:g}", "end", OTHER)
        picture.text(x + axes.width / 2, y + axes.height + 18, one["of"], "middle", OTHER)
        for edge, size in ((x, one["sizes"][0]), (x + axes.width, one["sizes"][-1])):
            picture.text(edge, y + axes.height + 18, f"{size:,}", "middle", OTHER)
        for kind, values in sorted(one["values"].items()):
            color = MET if kind == "service" else OTHER
            points = [axes.at(*point) for point in zip(sizes, values, strict=True)]
            picture.line(points, color, 2)
            for point in points:
                picture.dot(*point, color)
    return picture


def main(folder: Path) -> None:
    for name, key, draw in (("table", "rows", table), ("growth", "growth", growth)):
        figures = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        draw(figures[key]).write(folder / f"{name}.svg")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
