"""Charts and pictures of the banks that a run looked at."""

from __future__ import annotations

from tools.bank_picture import heads, picture
from tools.report.charts import Line, small_charts
from tools.report.html import Figure
from tools.report.run import Run


def bank_figures(run: Run) -> list[Figure]:
    """What the looks at each bank found, and the bank in two dimensions.

    Raises:
        ValueError: a snapshot is damaged.
    """
    found = []
    prefixes = [name.split("/")[1] for name in run.columns("bank/")]
    for head in dict.fromkeys([*prefixes, *heads(run.path)]):
        names = run.columns(f"bank/{head}/")
        if names:
            curves = [_curve(run, name) for name in names]
            caption = f"Bank {head}: what the looks at it found, over steps"
            found.append(Figure(small_charts(curves), "svg+xml", caption, wide=True))
        if head in heads(run.path):
            caption = (
                f"Bank {head}: a batch (dots) and the centres it names (crosses) on the centres' two principal axes"
            )
            found.append(Figure(picture(run.path, head), "png", caption, wide=True))
    return found


def _curve(run: Run, name: str) -> Line:
    steps, values = run.series(name)
    return Line(label=name.split("/", 2)[2].replace("_", " "), steps=steps, values=values)
