"""Bar charts as SVG, light or dark by the viewer's preference."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WIDTH = 760
LABELS = 190  # the width of the column of names
FIGURES = 90  # the width that is left for the figure after the longest bar
BAR = 18
GAP = 4
MARGIN = 12
# The first bar of a group is iobatch's. Its pure form has a shade of the same colour. All colours
# differ in brightness. The chart has its own background, because the embedding page may be dark
# where the viewer's system is light.
STYLE = """
  .page { fill: #ffffff }
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px }
  .group { font-weight: 600 }
  .other { fill: #8c959f }
  .first { fill: #1f6feb }
  .pure { fill: #79b8ff }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 }
    text { fill: #e6edf3 }
    .other { fill: #6e7681 }
    .first { fill: #58a6ff }
    .pure { fill: #2f5f9e }
  }
"""


def write_bar_chart(
    path: Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]
) -> None:
    """Write a chart of horizontal bars.

    Args:
        path: the file to write.
        title: the measured quantity, and the direction that is better.
        unit: the unit after each figure.
        groups: the value of each method, iobatch's first, by group. Each group has its own scale. A
            name that ends with ", pure" is that of iobatch's pure form.

    """
    y = 24
    shapes = [f'<text class="title" x="0" y="16">{escape(title)}</text>']
    for group, values in groups.items():
        y += 26
        shapes.append(f'<text class="group" x="0" y="{y - 8}">{escape(group)}</text>')
        scale = (WIDTH - LABELS - FIGURES) / max(values.values())
        for index, (name, value) in enumerate(values.items()):
            kind = ("pure" if name.endswith(", pure") else "other") if index else "first"
            length = max(1, round(value * scale))
            figure = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            shapes += [
                f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length}" height="{BAR}"/>',
                f'<text x="{LABELS + length + 6}" y="{y + 14}">{figure} {escape(unit)}</text>',
            ]
            y += BAR + GAP
    width, height = WIDTH + 2 * MARGIN, y + 2 * MARGIN
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" role="img" '
        f'viewBox="-{MARGIN} -{MARGIN} {width} {height}" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}">\n<style>{STYLE}</style>\n'
        f'<rect class="page" x="-{MARGIN}" y="-{MARGIN}" width="{width}" height="{height}"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )
