#!/usr/bin/env python3
"""Draws docs/images/figures.svg from bench/figures.csv, the figures of README.md.

usage: bench/plot.py            write the image
       bench/plot.py --check    compare figures.csv with README.md, and the image with figures.csv; write nothing

After a measurement, change the table of README.md and figures.csv, and run this script. Rows with a text in the column
`plot` are drawn. The output depends only on figures.csv. The exit code of --check is 1 if something differs.
"""

import csv
import os
import sys
from xml.sax.saxutils import escape

HERE = os.path.dirname(os.path.abspath(__file__))
FIGURES = os.path.join(HERE, "figures.csv")
README = os.path.join(HERE, "..", "README.md")
IMAGE = os.path.join(HERE, "..", "docs", "images", "figures.svg")

WIDTH, LEFT, BARS = 760, 290, 340
TOP, ROW, BAR, GAP = 40, 33, 11, 24
GROUPS = (("less", "Less is better"), ("more", "More is better"))

STYLE = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.value { font-size: 11px; } .group { font-weight: 600; } .note { font-size: 11px; fill: #59636e; }
.page { fill: #ffffff; } .berth { fill: #0969da; } .containerd { fill: #afb8c1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9198a1; }
  .page { fill: #0d1117; } .berth { fill: #4493f8; } .containerd { fill: #656c76; }
}"""


def figures():
    with open(FIGURES, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def text(x, y, content, kind="", anchor="start"):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{kind} text-anchor="{anchor}">{escape(content)}</text>'


def bar(y, row, runtime, longest):
    length = round(float(row[runtime]) / longest * BARS, 1)
    return [
        f'<rect class="{runtime}" x="{LEFT}" y="{y}" width="{length}" height="{BAR}" rx="2"/>',
        text(LEFT + length + 6, y + BAR - 2, f"{row[runtime]} {row['unit']}", "value"),
    ]


def legend(y):
    parts, x = [], LEFT
    for runtime in ("berth", "containerd"):
        parts.append(f'<rect class="{runtime}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>')
        parts.append(text(x + 18, y, runtime))
        x += 90
    return parts


def draw(rows):
    parts, y = legend(26), TOP
    for better, title in GROUPS:
        parts.append(text(LEFT - 14, y + 12, title, "group", "end"))
        y += GAP
        for row in rows:
            if row["plot"] and row["better"] == better:
                longest = max(float(row["berth"]), float(row["containerd"]))
                parts.append(text(LEFT - 14, y + BAR + 4, row["plot"], "", "end"))
                parts += bar(y, row, "berth", longest) + bar(y + BAR + 2, row, "containerd", longest)
                y += ROW
        y += 6
    parts.append(text(WIDTH - 16, y + 8, "Each pair is scaled to its longer bar. Method and conditions: README.md, Figures", "note", "end"))
    height = y + 22
    drawn = "; ".join(f"{row['plot']}: {row['berth']} and {row['containerd']} {row['unit']}" for row in rows if row["plot"])
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="title description">',
        '<title id="title">berth and containerd compared</title>',
        f'<desc id="description">{escape(drawn)}</desc>',
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        *parts,
        "</svg>",
        "",
    ])


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def differences(rows, image):
    table = {f"| {row['row']} | {row['berth']} {row['unit']} | {row['containerd']} {row['unit']} |" for row in rows}
    section = read(README).split("\n## Figures\n")[1].split("\n## ")[0].splitlines()
    listed = {line for line in section if line.startswith("| ") and not line.startswith(("| | ", "| ---"))}
    yield from (f"only in README.md: {line}" for line in sorted(listed - table))
    yield from (f"only in figures.csv: {line}" for line in sorted(table - listed))
    if read(IMAGE) != image:
        yield "docs/images/figures.svg is not up to date: run bench/plot.py"


def main(arguments):
    rows = figures()
    image = draw(rows)
    if arguments == ["--check"]:
        found = list(differences(rows, image))
        print("\n".join(found) or "figures.csv, README.md and figures.svg agree")
        return 1 if found else 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 1
    os.makedirs(os.path.dirname(IMAGE), exist_ok=True)
    with open(IMAGE, "w", encoding="utf-8") as file:
        file.write(image)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
