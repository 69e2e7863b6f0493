"""Markdown styled while it streams: only styles are added, whatever comes in whatever pieces."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hga.tools.markdown import MarkdownStyler

_SGR = re.compile("\x1b\\[([0-9;]*)m")
_WORDS = (
    "*", "**", "***", "_", "__", "`", "```", "~~~", "``", "#", "## ", "- ", "1. ", "> ", "    ",
    "\n", " ", "\t", "\r\n", "\\", "a", "b c", "é", "日本", "😀", "9", ".", "|", "---", "python",
    "(", ")", ":",
)  # fmt: skip
texts = st.lists(st.sampled_from(_WORDS), max_size=30).map("".join)


def stream(pieces):
    styler = MarkdownStyler()
    return [styler.push(piece) for piece in pieces] + [styler.finish()]


def styled(text):
    """[(characters, codes of their style)] of a text that came letter by letter."""
    found, now = [], ""
    for part in re.split("(\x1b\\[[0-9;]*m)", "".join(stream(text))):
        code = _SGR.fullmatch(part)
        if code:
            now = "" if code[1] == "0" else code[1]
        elif part and found and found[-1][1] == now:
            found[-1] = (found[-1][0] + part, now)
        elif part:
            found.append((part, now))
    return found


@settings(max_examples=200, deadline=None)
@given(texts, st.data())
@example("`" * 30 + "\n" + "*" * 30, None)
def test_only_styles_are_added(text, data):
    pieces, rest = [], text
    while rest:
        n = 1 if data is None else data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:n])
        rest = rest[n:]
    out = stream(pieces)
    assert _SGR.sub("", "".join(out)) == text
    for piece in out:
        codes = _SGR.findall(piece)
        assert not codes or codes[-1] == "0", "a piece must leave the terminal as it was"
    for line in "".join(out).split("\n"):
        codes = _SGR.findall(line)
        assert not codes or codes[-1] == "0", "a line break must stand in no style"


@settings(max_examples=200, deadline=None)
@given(texts, st.data())
def test_styles_do_not_depend_on_the_pieces(text, data):
    cut = data.draw(st.integers(0, len(text)))
    assert join(stream([text[:cut], text[cut:]])) == join(stream(text))


def join(out):
    """The output without switching a style off and on again between pieces."""
    previous, text = None, "".join(out)
    while text != previous:
        previous, text = text, re.sub("\x1b\\[0m\x1b\\[([1-9][0-9;]*)m", "\x1b[>\\1m", text)
    open_style, parts = "", []
    for part in re.split("(\x1b\\[>?[0-9;]*m)", text):
        code = part.removeprefix("\x1b[").removesuffix("m") if part.startswith("\x1b[") else None
        if code is None:
            parts.append(part)
        elif code.removeprefix(">") != open_style:
            open_style = code.removeprefix(">")
            parts.append(f"<{open_style}>")
    return "".join(parts)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="*_`#- \n1.a", max_size=40))
def test_little_is_held_back(text):
    styler, written = MarkdownStyler(), 0
    for i, char in enumerate(text, 1):
        written += len(_SGR.sub("", styler.push(char)))
        assert i - written <= 11


HEADING, BOLD, ITALIC, CODE, MARK, BULLET = "1;36", "1", "3", "32", "2", "36"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\nx", [("# Title", HEADING), ("\nx", "")]),
        ("####### x", [("####### x", "")]),
        ("#tag", [("#tag", "")]),
        ("a **b** c", [("a ", ""), ("**", MARK), ("b", BOLD), ("**", MARK), (" c", "")]),
        ("__b__", [("__", MARK), ("b", BOLD), ("__", MARK)]),
        ("*i*, x", [("*", MARK), ("i", ITALIC), ("*", "3;2"), (", x", "")]),
        ("***b***", [("***", MARK), ("b", "1;3"), ("***", "3;2")]),
        ("2 * 3 * 4, a*b*c, 2**3 and x_{i}_j", [("2 * 3 * 4, a*b*c, 2**3 and x_{i}_j", "")]),
        ("snake_case_name", [("snake_case_name", "")]),
        ("\\*no\\*", [("\\*no\\*", "")]),
        ("a `b*c*` d", [("a ", ""), ("`", MARK), ("b*c*", CODE), ("`", "32;2"), (" d", "")]),
        ("``a ` b`` c", [("``", MARK), ("a ` b", CODE), ("``", "32;2"), (" c", "")]),
        ("a ` b", [("a ` b", "")]),
        ("**a\nb", [("**", MARK), ("a", BOLD), ("\nb", "")]),
        ("- a\n  10) b", [("-", BULLET), (" a\n  ", ""), ("10)", BULLET), (" b", "")]),
        ("-5 and 2024 was", [("-5 and 2024 was", "")]),
        ("* **a**", [("*", BULLET), (" ", ""), ("**", MARK), ("a", BOLD), ("**", MARK)]),
        ("> - x", [(">", BULLET), (" ", ""), ("-", BULLET), (" x", "")]),
        ("---\nx", [("---", MARK), ("\nx", "")]),
        ("```py\n# *a*\n```\n*b*",
         [("```py", MARK), ("\n", ""), ("# *a*", CODE), ("\n", ""), ("```", MARK), ("\n", ""),
          ("*", MARK), ("b", ITALIC), ("*", "3;2")]),
        ("1. x\n   ~~~\n   ```\n   ~~~\n# y",
         [("1.", BULLET), (" x\n   ", ""), ("~~~", MARK), ("\n   ", ""), ("```", CODE),
          ("\n   ", ""), ("~~~", MARK), ("\n", ""), ("# y", HEADING)]),
        # Neither a shorter run nor one with text behind it closes a fence.
        ("````\n```\n````x\n````\ny",
         [("````", MARK), ("\n", ""), ("```", CODE), ("\n", ""), ("````x", CODE), ("\n", ""),
          ("````", MARK), ("\ny", "")]),
        ("``` a``` b\n*c*",
         [("``` a", MARK), ("```", "32;2"), (" b\n", ""), ("*", MARK), ("c", ITALIC),
          ("*", "3;2")]),
    ],
)  # fmt: skip
def test_what_is_styled_how(text, expected):
    assert styled(text) == expected
