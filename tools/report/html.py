"""Pieces of a page: everything inside one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root{--ink:#111827;--soft:#6b7280;--line:#e5e7eb;--paper:#fff;--ground:#f9fafb}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;color:var(--ink);background:var(--ground);margin:0}
main{max-width:76rem;margin:0 auto;padding:2rem 1.5rem 4rem}
h1{font-size:1.6rem;margin:0 .8rem 0 0;display:inline-block}
h2{font-size:1.1rem;margin:2.2rem 0 .8rem}
.state{display:inline-block;padding:.1rem .7rem;border-radius:1rem;font-size:.85rem;color:#fff;background:#6b7280;
vertical-align:.25rem}
.finished{background:#059669}.running{background:#2563eb}.stopped{background:#d97706}.failed,.hung,.refused,.killed{background:#dc2626}
.detail{margin:.6rem 0 0;color:#b91c1c;white-space:pre-wrap;overflow-wrap:anywhere}
.path{color:var(--soft);font-size:.85rem;margin:.2rem 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.7rem;margin-top:1.2rem}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.tile b{display:block;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.8rem}
.figures{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
@media(max-width:60rem){.figures{grid-template-columns:1fr}}
figure{margin:0;background:var(--paper);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
figure.wide{grid-column:1/-1}
figure img{width:100%;height:auto;display:block}figure img.own{width:auto;max-width:100%;margin:0 auto}
figcaption{font-weight:600;font-size:.9rem;margin-bottom:.4rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;background:var(--paper);border:1px solid var(--line);font-size:.88rem;
font-variant-numeric:tabular-nums}
td,th{padding:.3rem .9rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:500}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with what it shows."""

    data: bytes
    kind: str
    """Of the media type `image/KIND`: `svg+xml`, `png`, `gif`."""
    caption: str
    wide: bool = False
    """Over the page's whole width."""


def page(title: str, body: str) -> str:
    """The whole file."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A part with its heading; nothing where there is no content."""
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def figures(shown: Sequence[Figure]) -> str:
    """Pictures in two columns. Drawn ones fill theirs; others keep their size where it fits."""
    parts = [
        f"<figure{' class=wide' if figure.wide else ''}><figcaption>{escape(figure.caption)}</figcaption>"
        f'<img{"" if figure.kind == "svg+xml" else " class=own"} alt="{escape(figure.caption)}" '
        f'src="data:image/{figure.kind};base64,{base64.b64encode(figure.data).decode()}"></figure>'
        for figure in shown
    ]
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def tiles(facts: Mapping[str, str]) -> str:
    """Numbers to be seen first."""
    parts = [
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in facts.items()
    ]
    return f'<div class="tiles">{"".join(parts)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under column heads (none for a table of two plain columns); nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>{body}</tbody></table></div>'
