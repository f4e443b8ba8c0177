"""Pages that fit the window: long names may break at their joints, columns of tables are as wide as their words need, and a table that does
not fit a phone becomes a card for each row there."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

_JOINT = re.compile(r"(?<=[/_])(?=\w)|(?<=::)|(?<=\.)(?=(?!py\b)[A-Za-z])|(?<=[a-z])(?=[A-Z])")
UNBROKEN = 18  # characters of code that stay in one piece
TITLE = 12  # characters of a title, which a phone has room for
NARROW, BROAD = 14, 40  # characters of the longest cell of a column
_NUMBERS = re.compile(r"(?:[\de.,()%<>+±-]+|s|ms|µs|MB|GB|to| )*")  # with their units and intervals, which stay on one line
NUMERIC = 26  # characters of the longest such cell of a column
FEW = 6  # rows
MANY = 6  # columns, from which on letters are smaller
PHONE = 50  # characters that a phone has room for, counting 30 at most for a column


def pieces(code: str, unbroken: int = UNBROKEN) -> list[str]:
    """A long name in pieces, between which a line may end.

    >>> pieces("mea_graph/ops/predictive/cpu.py")
    ['mea_', 'graph/', 'ops/', 'predictive/', 'cpu.py']
    """
    return _JOINT.split(code) if len(code) > unbroken else [code]


def _break(name: nodes.TextElement) -> None:
    parts = pieces(name.astext(), TITLE if isinstance(name, nodes.title) else UNBROKEN)
    if len(parts) > 1:
        name.children = []
        for i, part in enumerate(parts):
            name += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)][not i :]


def _rows(table: nodes.table, part: type[nodes.Element]) -> list[list[nodes.entry]]:
    return [list(row.findall(nodes.entry)) for body in table.findall(part) for row in body.findall(nodes.row)]


def _verdicts(rows: list[list[nodes.entry]]) -> bool:
    """Whether a few rows end in words, which a reader of a phone would not see behind the numbers."""
    return len(rows) <= FEW and all(row[0].astext() for row in rows) and not all(_NUMBERS.fullmatch(row[-1].astext()) for row in rows)


def _fit(table: nodes.table) -> None:
    heads, rows = _rows(table, nodes.thead), _rows(table, nodes.tbody)
    if heads and not any(entry.astext() for entry in heads[0]):
        for head in list(table.findall(nodes.thead)):
            head.parent.remove(head)
        heads = []
    columns = list(zip(*rows, strict=True))
    longest = [max(len(entry.astext()) for entry in column) for column in columns]
    for column, length in zip(columns, longest, strict=True):
        whole = length <= NARROW or (length <= NUMERIC and all(_NUMBERS.fullmatch(entry.astext()) for entry in column))
        for entry in column:
            entry["classes"] += ["narrow"] if whole else ["broad"] if length >= BROAD else []
    if len(longest) >= MANY:
        table["classes"].append("many")
    wide = len(longest) > 2 and sum(min(length, 30) for length in longest) > PHONE
    if heads and wide and (max(longest[1:], default=0) >= BROAD or _verdicts(rows)):
        table["classes"].append("cards")
        for row in rows:
            for entry, head in zip(row, heads[0], strict=True):
                if entry.astext() and head.astext():
                    entry[0].insert(0, nodes.inline("", head.astext(), classes=["label"]))


class Tables(SphinxPostTransform):
    default_priority = 900  # when links are resolved
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for table in list(self.document.findall(nodes.table)):
            if "summary" not in table["classes"]:
                _fit(table)
        titles = [title for title in self.document.findall(nodes.title) if title.astext().replace("_", "").isalpha()]
        for name in [*titles, *self.document.findall(nodes.literal)]:
            _break(name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
