"""A page as HTML in one file: no script, and nothing from elsewhere, which its content policy forbids too.

Light or dark as the reader prefers. Colours keep the contrasts of WCAG 2.2 AA on both grounds: 4.5 for text, 3 for
lines of pictures. Tables that are wider than the screen scroll by themselves, by keyboard too.
"""

from html import escape as escape_html

from jaxgpt.report.blocks import Block, Heading, Items, Page, Paragraph, Picture, Table
from jaxgpt.streams import one_line

LIGHT = {
    "ground": "#ffffff", "stripe": "#f3f4f6", "ink": "#1a1c1f", "faint": "#5a5f66", "line": "#868b92",
    "s0": "#0b5fa5", "s1": "#b3400f", "s2": "#1b7a3d", "s3": "#8e3a8e",
    "s4": "#7a5c00", "s5": "#00707a", "s6": "#a3195b", "s7": "#4d4d4d",
}  # fmt: skip
DARK = {
    "ground": "#14161a", "stripe": "#1e2126", "ink": "#e6e8eb", "faint": "#a9afb7", "line": "#7d838b",
    "s0": "#6db3f2", "s1": "#ff9466", "s2": "#63c98a", "s3": "#d99be0",
    "s4": "#e0bd4f", "s5": "#4fc9d4", "s6": "#ff8ab5", "s7": "#c4c4c4",
}  # fmt: skip
"""Name of a colour of the style -> its value; s0 to s7 are those of curves."""
N_SERIES = 8

STYLE = """
body { background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--faint); padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem .4rem; }
th, td { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody th { font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--faint); }
""".strip()
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def escape(text: str) -> str:
    """A text that is shown as it is, also inside an attribute."""
    return escape_html(one_line(text), quote=True)


def to_html(page: Page) -> str:
    title = escape(page.title)
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        "<style>",
        f":root {{ color-scheme: light dark; {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        STYLE,
        "</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        *map(_block, page.blocks),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Items(texts):
            return "\n".join(["<ul>", *(f"<li>{escape(text)}</li>" for text in texts), "</ul>"])
        case Table():
            return _table(block)
        case Picture(text, svg):
            drawn = f'<div role="img" aria-label="{escape(text)}">\n{svg}\n</div>'
            return f"<figure>\n{drawn}\n<figcaption>{escape(text)}</figcaption>\n</figure>"


def _table(table: Table) -> str:
    caption = escape(table.caption)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    ]
    return "\n".join(
        [
            f'<div class="wide" role="region" aria-label="{caption}" tabindex="0">',
            "<table>",
            f"<caption>{caption}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>",
            "</div>",
        ]
    )
