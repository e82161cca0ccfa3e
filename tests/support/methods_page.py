"""Writes docs/quantised.md below its marker from the methods themselves: `python tests/support/methods_page.py`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streamconv.configs.quantisation import described
from streamconv.formats.header_room import HeaderRoom
from streamconv.quantisation.language import Layout, Method, Part
from streamconv.quantisation.registry import NOT_READ, methods
from support import ROOT
from support.golden_quantised import cases

PAGE = ROOT / "docs" / "quantised.md"
MARK = "<!-- From here on written by tests/support/methods_page.py. -->\n"


def page() -> str:
    """The page as it has to be."""
    return PAGE.read_text().split(MARK)[0] + MARK + "\n".join(_lines()) + "\n"


def counts() -> Counter[str]:
    """How many repositories with proven answers there are of each method, errors not counted."""
    found: Counter[str] = Counter()
    for case in cases("expected"):
        config = json.loads((case.source / "config.json").read_text())
        description = described(config, case.source, HeaderRoom())
        assert description is not None and description.method is not None, case.name
        found[description.method.name] += 1
    return found


def _lines() -> Iterator[str]:
    proven = counts()
    yield "\n## All methods\n"
    yield "| method | `quant_method`, or the file that says it | written by | golden cases |\n|---|---|---|---|"
    for method in methods():
        known = ", ".join(f"`{word}`" for word in (method.name, *method.files))
        yield f"| [{method.title}](#{_anchor(method)}) | {known} | {', '.join(method.tools)} | {proven[method.name]} |"
    yield f"\nRefused by name: {', '.join(sorted(NOT_READ.values(), key=str.lower))}."
    for method in methods():
        yield from _section(method)


def _anchor(method: Method) -> str:
    return "".join(c for c in method.title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _section(method: Method) -> Iterator[str]:
    yield f"\n## {method.title}\n"
    yield "| weights | tensors of a weight `X` | scales | source of the layout |\n|---|---|---|---|"
    for layout in method.layouts({}):
        parts = [_spelled(layout.codes), *map(_spelled, layout.parts)]
        yield f"| {title(layout)} | {'<br>'.join(parts)} | {_scales(layout)} | {layout.source} |"
    if method.dropped:
        dropped = (f"`{ending}` ({why})" for ending, why in method.dropped.items())
        yield f"\nDropped and listed: {', '.join(dropped)}."
    for difference in method.differs:
        yield f"\nOther bits elsewhere: {difference}."


def title(layout: Layout) -> str:
    """What a layout's weights are, of any number of bits that it may have."""
    return layout.title.format(bits=layout.bits or "2 to 8")


def _spelled(part: Part) -> str:
    endings = " or ".join(f"`X{ending}`" for ending in part.endings)
    return f"{endings} {' or '.join(dtype.name for dtype in part.dtypes)}{' (optional)' if part.optional else ''}"


def _scales(layout: Layout) -> str:
    found = []
    for factor in layout.factors:
        what = "divides" if factor.divides else "multiplies"
        of = f", for {factor.group} inputs" if factor.group else ", for each input" if factor.of_inputs else ""
        of += f", for {factor.block[0]} x {factor.block[1]} unless the config says otherwise" if factor.block else ""
        found.append(f"`{factor.endings[0]}` {what}{of}")
    return "<br>".join(found)


if __name__ == "__main__":
    PAGE.write_text(page())
