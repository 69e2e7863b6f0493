"""How large a JSON text may unfold, told before it is parsed.

A value is the first in its brackets or stands behind a comma, so counting those characters bounds
the objects that a parser makes: `{},` is three bytes of a file and a hundred of memory.
"""


def most_values(text: str | bytes) -> int:
    """The most values that a JSON text can hold; characters within its strings count too."""
    if isinstance(text, bytes):
        return 1 + text.count(b",") + text.count(b"[") + text.count(b"{")
    return 1 + text.count(",") + text.count("[") + text.count("{")
