"""HTML to text: what a reader sees, with headings, lists, tables and line breaks kept as plain
marks (parsed by selectolax)."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_UNSEEN = frozenset(
    ("script", "style", "noscript", "template", "svg", "iframe", "object", "select", "head")
)
_BLOCKS = frozenset(
    (
        *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "ul"),
        *("ol", "dl", "table", "blockquote", "figure", "form", "pre", "hr", "address"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "fieldset", "details"),
    )
)
_LINES = frozenset(("li", "tr", "dt", "dd", "br", "option", "figcaption", "summary", "caption"))
_CELLS = frozenset(("td", "th"))
_MOST_DEPTH = 400

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
# Elements that need no end, or have none.
_UNCLOSED = frozenset(
    (
        *("p", "li", "td", "th", "tr", "dt", "dd", "option", "optgroup", "thead", "tbody", "tfoot"),
        *("colgroup", "col", "br", "hr", "img", "input", "meta", "link", "area", "base", "embed"),
        *("source", "track", "wbr", "param", "html", "head", "body"),
    )
)
# The parser takes the square of the depth: 0.4 s for this one, three minutes for 200,000.
_MOST_PARSED_DEPTH = 10_000


def html_text(page: str) -> str:
    """The text of a page, title first; raises DocumentError without the parser, and for elements
    within elements without end."""
    from hga.tools.batch.documents import DocumentError

    if (found := _depth(page)) > _MOST_PARSED_DEPTH:
        raise DocumentError(f"HTML nested {found:,} deep: at most {_MOST_PARSED_DEPTH:,} are read")
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise DocumentError("HTML needs the package selectolax: pip install selectolax") from None
    tree = LexborHTMLParser(page)
    writer = _Writer()
    title = tree.css_first("head > title")
    if title is not None:
        writer.text(title.text())
        writer.end_block()
    if tree.body is not None:
        writer.visit(tree.body, 0)
    return writer.result()


def _depth(page: str) -> int:
    """How deep elements lie in each other, or more: a parser closes some by itself."""
    if page.count("<") <= _MOST_PARSED_DEPTH:
        return 0
    depth = most = at = 0
    while found := _TAG.search(page, at):
        at, tag = found.end(), found[2].lower()
        if found[1]:
            depth = max(0, depth - (tag not in _UNCLOSED))
        elif tag in ("script", "style"):
            # What is in there are no tags.
            end = re.compile(f"</{tag}", re.IGNORECASE).search(page, at)
            if end is None:
                break
            at = end.end()
        elif tag not in _UNCLOSED:
            depth += 1
            most = max(most, depth)
    return most


class _Writer:
    """Collects words into lines and lines into blocks; white space collapses but in `pre`."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def text(self, words: str, *, verbatim: bool = False) -> None:
        if not verbatim:
            words = re.sub(r"\s+", " ", words)
            if not self._parts or self._parts[-1][-1] in " \n":
                words = words.lstrip(" ")
        if words:
            self._parts.append(words)

    def end_line(self) -> None:
        self._parts.append("\n")

    def end_block(self) -> None:
        self._parts.append("\n\n")

    def result(self) -> str:
        *lines, last = "".join(self._parts).split("\n")
        # The mark behind a row's last cell, and spaces at the end of a line.
        text = "\n".join([*(line.rstrip(" \t").removesuffix(" |") for line in lines), last])
        return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"

    def visit(self, node: "LexborNode", depth: int, verbatim: bool = False) -> None:
        child = node.child
        while child is not None:
            tag = child.tag or ""
            if tag == "-text":
                self.text(child.text_content or "", verbatim=verbatim)
            elif tag not in _UNSEEN and not tag.startswith("-"):
                self._element(child, tag, depth, verbatim)
            child = child.next

    def _element(self, node: "LexborNode", tag: str, depth: int, verbatim: bool) -> None:
        if tag in _BLOCKS:
            self.end_block()
        elif tag in _LINES:
            self.end_line()
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.text("#" * int(tag[1]) + " ")
        elif tag == "li":
            self.text("- ")
        if depth >= _MOST_DEPTH:
            # Deeper nesting than any page has: its words without their layout.
            self.text(node.text(separator=" "))
        else:
            self.visit(node, depth + 1, verbatim or tag == "pre")
        if tag in _CELLS:
            self.text(" | ")
        elif tag in _BLOCKS:
            self.end_block()
