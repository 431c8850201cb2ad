"""What a page is made of. Its texts come from records, so they are data: whoever renders them escapes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Each row begins with what it is about.

    Attributes:
      caption: what the table shows, in a line.
      min_widths: of the columns in Markdown, in characters; the last is for all further ones.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    min_widths: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """Curves.

    Attributes:
      text: what they show, for whoever does not see them.
      svg: for HTML, with colours of the page's style.
      png: for Markdown, written beside it as `file`.
    """

    text: str
    svg: str
    png: bytes
    file: str


Block = Heading | Paragraph | Items | Table | Picture


@dataclass(frozen=True)
class Page:
    title: str
    blocks: tuple[Block, ...]
