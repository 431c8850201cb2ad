"""A page as Markdown (GitHub's), with tables that are tables in the source too."""

import re

from jaxgpt.report.blocks import Block, Heading, Items, Page, Paragraph, Picture, Table
from jaxgpt.streams import one_line

ESCAPED = {ord(character): f"\\{character}" for character in "\\`*[]|~#$!"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}
"""What would be read as markup, wherever it stands. An underscore is, except within a word such as n_layer."""
UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def escape(text: str) -> str:
    """A text in one line that is shown as it is."""
    return UNDERSCORE.sub(r"\_", one_line(text).translate(ESCAPED))


def to_markdown(page: Page) -> str:
    return "\n\n".join([f"# {escape(page.title)}", *map(_block, page.blocks)]) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {escape(text)}"
        case Paragraph(text):
            return _at_start(escape(text))
        case Items(texts):
            return "\n".join(f"- {_at_start(escape(text))}" for text in texts)
        case Table():
            return _table(block)
        case Picture(text, file=file):
            return f"![{escape(text)}]({file})"


def _at_start(text: str) -> str:
    """A line that begins no list, no rule and no code."""
    text = re.sub(r"^(?=[-+=])", r"\\", text.strip())
    return re.sub(r"^\d+(?=[.)])", r"\g<0>\\", text)


def _table(table: Table) -> str:
    rows = [[escape(cell) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    least = table.min_widths
    widths = [max(3, width, least[min(i, len(least) - 1)]) for i, width in enumerate(widths)]
    lines = ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([f"{escape(table.caption)}:", "", lines[0], rule, *lines[1:]])
