"""The worked example as one page: its sections, and the picture of why drawn."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenly.lab.explain import Epoch
    from evenly.lab.explain_page import Section

STYLE = """
:root { --page: #fff; --ink: #1b1f24; --soft: #57606a; --panel: #f6f8fa; --line: #d8dee4; --a: #d55e00; --b: #0072b2;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e8eaed; --soft: #a8b0b8; --panel: #1c2126;
  --line: #343b42; --a: #ff8a3d; --b: #4ba6e8; } }
body { margin: 0 auto; max-width: 50rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 17px/1.6 system-ui, "Segoe UI", Roboto, "Noto Sans CJK SC", "Noto Sans SC", sans-serif; }
h1 { font-size: 1.9rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; font: 13.5px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC",
  monospace; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.a { fill: var(--a); } .b { fill: var(--b); }
svg text.a, svg text.b { font-size: 13px; font-weight: 600; }
svg text.a { fill: var(--a); } svg text.b { fill: var(--b); }
svg line { stroke: var(--line); } li { margin: .4rem 0; }
@media print { h2 { break-after: avoid; } pre { white-space: pre-wrap; break-inside: avoid; } }
"""


def page(sections: Iterable[Section], run: Epoch, words: dict[str, Any], lang: str) -> str:
    """The whole page; nothing is fetched."""
    code = {"en": "en", "zh": "zh-CN"}[lang]
    # A Chinese character is as wide as two others only where one font has both.
    mono = 'pre { font-family: "Noto Sans Mono CJK SC", "Sarasa Mono SC", monospace; }' if lang == "zh" else ""
    parts = [
        f'<!doctype html>\n<html lang="{code}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(words['title'])}</title>\n<style>{STYLE}{mono}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(words['title'])}</h1>"
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        if section.kind == "picture":
            parts.append(picture(run, words))
        elif section.kind == "list":
            items = "".join(f"<li>{escape(line.partition('. ')[2])}</li>" for line in section.table.splitlines())
            parts.append(f"<ol>{items}</ol>")
        elif section.table:
            parts.append(f'<pre tabindex="0">{escape(section.table)}</pre>')
    return "\n".join([*parts, "</main>\n</body>\n</html>\n"])


def picture(run: Epoch, words: dict[str, Any]) -> str:
    """Five dots for each batch, before the norm on the left, after it on the right."""
    drawn = []
    for left, low, high, values, style in (
        (70, 8.0, 24.0, [step.z for step in run.steps], "a"),
        (430, -2.0, 2.0, [step.xhat for step in run.steps], "b"),
    ):
        title = words["before" if style == "a" else "after"]
        drawn.append(f'<text class="{style}" x="{left}" y="18">{escape(title)}</text>')
        for i, batch in enumerate(values):
            y = 42 + 26 * i
            drawn.append(f'<line x1="{left}" x2="{left + 300}" y1="{y}" y2="{y}"/>')
            for row in batch:
                x = left + 300 * (row[0] - low) / (high - low)
                drawn.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y}" r="5.5" fill-opacity=".85"/>')
        for value in (low, (low + high) / 2, high):
            x = left + 300 * (value - low) / (high - low)
            drawn.append(f'<text x="{x:.0f}" y="200" text-anchor="middle">{value:g}</text>')
    names = "".join(
        f'<text x="58" y="{46 + 26 * i}" text-anchor="end">{escape(words["batch"])} {i + 1}</text>'
        for i in range(len(run.steps))
    )
    label = escape(f"{words['why'][0]}. {words['why'][1]}")
    return f'<svg viewBox="0 0 750 210" role="img" aria-label="{label}">{names}{"".join(drawn)}</svg>'
