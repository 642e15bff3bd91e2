"""An HTML page of sections and charts: text that is escaped, numbers that are rounded, SVG that is drawn here."""

from __future__ import annotations

import base64
import html
import json
import math
import struct
import zlib
from typing import Any, Iterable, Optional, Sequence

escape = html.escape


class Page:
    """What is on the page, in order."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []
        self.head: list[str] = []  # above the sections
        self.shown: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._ids = 0

    def id(self) -> str:
        self._ids += 1
        return f"p{self._ids}"

    def section(self, title: str, text: str) -> None:
        name = self.id()
        self._sections.append((name, title))
        self.shown.append(title)
        self.parts.append(f'<h2 id="{name}">{escape(title)}</h2>\n<p>{text}</p>')

    def add(self, part: str) -> None:
        self.parts.append(part)

    def figure(self, title: str, chart: str, caption: str, legend: str = "", after: str = "") -> None:
        """A chart with its title above and a text below that says what it shows."""
        self.parts.append(
            f'<figure><h3>{escape(title)}</h3>\n{legend}<div class="scroll" tabindex="0" role="group" '
            f'aria-label="{escape(title)}">{chart}</div>\n{after}<figcaption>{caption}</figcaption></figure>'
        )

    def data(self, value: Any) -> str:
        """Embeds data for the script; returns its id."""
        name = self.id()
        text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
        self.parts.append(f'<script type="application/json" id="{name}">{text}</script>')
        return name

    def html(self, style: str, script: str, version: str) -> str:
        links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in self._sections)
        body = "\n".join(self.parts)
        head = "\n".join(self.head)
        return f"""<!DOCTYPE html>
<!-- lessismore report -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="lessismore {escape(version)}">
<link rel="icon" href="data:,">
<title>{escape(self.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(self.title)}</h1>
{head}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer>Made by lessismore {escape(version)}. Everything on this page is in this file.</footer>
<script>
{script}</script>
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], caption: str) -> str:
    """rows: (class, cells); the first cell names the row."""
    lines = [f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table><thead><tr>']
    lines += [f'<th scope="col">{escape(cell)}</th>' for cell in head]
    lines.append("</tr></thead><tbody>")
    for kind, (first, *rest) in rows:
        mark = f' class="{kind}"' if kind else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    lines.append("</tbody></table></div>")
    return "".join(lines)


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(swatch as HTML, text)"""
    return '<ul class="legend">' + "".join(f"<li>{mark}{escape(text)}</li>" for mark, text in entries) + "</ul>\n"


def n(x: float) -> str:
    """A coordinate."""
    return f"{x:.2f}".rstrip("0").rstrip(".")


class Axes:
    """The frame of a chart: x and y from data to the picture."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, size: tuple[int, int] = (620, 340),
        margin: tuple[int, int, int, int] = (14, 16, 46, 58), log_x: bool = False,
    ) -> None:  # fmt: skip
        self.size, self.log_x = size, log_x
        top, right, bottom, self.left = margin
        self.top, self.width, self.height = top, size[0] - self.left - right, size[1] - top - bottom
        self._x = (math.log2(x[0]), math.log2(x[1])) if log_x else x
        self._y = y
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self._x
        value = math.log2(value) if self.log_x else value
        return self.left + (value - low) / ((high - low) or 1) * self.width

    def y(self, value: float) -> float:
        low, high = self._y
        return self.top + self.height - (value - low) / ((high - low) or 1) * self.height

    def grid(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str) -> None:
        right, bottom = self.left + self.width, self.top + self.height
        for value, text in y_ticks:
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{self.left}" x2="{n(right)}" y1="{n(y)}" y2="{n(y)}"/>')
            self.parts.append(f'<text class="soft" x="{self.left - 7}" y="{n(y + 4)}" text-anchor="end">{escape(text)}</text>')
        for value, text in x_ticks:
            x = self.x(value)
            self.parts.append(f'<line class="axis" x1="{n(x)}" x2="{n(x)}" y1="{n(bottom)}" y2="{n(bottom + 4)}"/>')
            self.parts.append(f'<text class="soft" x="{n(x)}" y="{n(bottom + 17)}" text-anchor="middle">{escape(text)}</text>')
        self.parts.append(f'<line class="axis" x1="{self.left}" x2="{n(right)}" y1="{n(bottom)}" y2="{n(bottom)}"/>')
        middle = self.top + self.height / 2
        self.parts.append(
            f'<text x="{n(self.left + self.width / 2)}" y="{self.size[1] - 8}" text-anchor="middle">{escape(x_name)}</text>'
            f'<text x="15" y="{n(middle)}" text-anchor="middle" transform="rotate(-90 15 {n(middle)})">{escape(y_name)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], color: str, *, width: float = 2, dash: str = "", opacity: float = 1) -> None:
        if len(points) < 2:
            return
        path = "M" + "L".join(f"{n(self.x(x))} {n(self.y(y))}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" '
            f'stroke-linejoin="round"{more}/>'
        )

    def svg(self, label: str, attributes: str = "") -> str:
        width, height = self.size
        return (
            f'<svg viewBox="0 0 {width} {height}" style="min-width:{0.75 * width:.0f}px" role="img" '
            f'aria-label="{escape(label)}" {attributes}>'
            f"{''.join(self.parts)}</svg>"
        )


SHAPES = ("circle", "square", "diamond", "triangle", "cross")


def marker(shape: str, x: float, y: float, color: str, title: str = "", size: float = 4) -> str:
    """A point that tells what it is."""
    told = f"<title>{escape(title)}</title>" if title else ""
    if shape == "circle":
        return f'<circle cx="{n(x)}" cy="{n(y)}" r="{size}" fill="{color}">{told}</circle>'
    s = size
    paths = {
        "square": f"M{n(x - s)} {n(y - s)}h{2 * s}v{2 * s}h{-2 * s}z",
        "diamond": f"M{n(x)} {n(y - 1.3 * s)}L{n(x + 1.3 * s)} {n(y)}L{n(x)} {n(y + 1.3 * s)}L{n(x - 1.3 * s)} {n(y)}z",
        "triangle": f"M{n(x)} {n(y - 1.2 * s)}L{n(x + 1.2 * s)} {n(y + s)}L{n(x - 1.2 * s)} {n(y + s)}z",
        "cross": f"M{n(x - s)} {n(y - s)}L{n(x + s)} {n(y + s)}M{n(x + s)} {n(y - s)}L{n(x - s)} {n(y + s)}",
    }
    if shape == "cross":
        return f'<path d="{paths[shape]}" stroke="{color}" stroke-width="2" fill="none">{told}</path>'
    return f'<path d="{paths[shape]}" fill="{color}">{told}</path>'


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round values between low and high, and their text."""
    span = high - low
    if span <= 0:
        return [(low, number(low))]
    step: float = 10 ** math.floor(math.log10(span / count))
    step = next(step * k for k in (1, 2, 2.5, 5, 10) if span / (step * k) <= count)
    out, value = [], math.ceil(low / step - 1e-9) * step
    while value <= high + 1e-9 * span:
        out.append((value, number(round(value, 10))))
        value += step
    return out


def number(x: float, digits: Optional[int] = None) -> str:
    if digits is not None:
        return f"{x:,.{digits}f}"
    return f"{x:,.0f}" if x == int(x) else f"{x:,g}"


def png(rows: Sequence[bytes], palette: Sequence[tuple[int, int, int, int]]) -> str:
    """An image of palette indices as a data address."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"PLTE", b"".join(bytes(c[:3]) for c in palette))
        + chunk(b"tRNS", bytes(c[3] for c in palette))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
