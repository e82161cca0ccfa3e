"""Plots that several benchmarks draw. Matplotlib is imported here only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .measuring import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_APART = 0.16


def ratios(title: str, label: str, series: Mapping[str, Mapping[str, Spread]]) -> Figure:
    """Plot medians as points with their ranges as bars, and a line at 1.

    Args:
        title: title of the plot.
        label: label of the axis of ratios.
        series: by name, the ratio of each case; those of one case are drawn next to each other.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    cases = list(dict.fromkeys(case for some in series.values() for case in some))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="grey", linewidth=1, linestyle="--")
    for i, (name, found) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * _APART
        places = [cases.index(case) + shift for case in found]
        medians = [one.median for one in found.values()]
        below = [one.median - one.least for one in found.values()]
        above = [one.most - one.median for one in found.values()]
        axes.errorbar(places, medians, yerr=[below, above], fmt="o", capsize=4, label=name)
    axes.set(title=title, ylabel=label, xlim=(-0.5, len(cases) - 0.5), ylim=(0, None))
    axes.set_xticks(range(len(cases)), cases)
    axes.legend()
    return figure
