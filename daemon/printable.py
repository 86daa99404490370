"""Text of others, made fit for a terminal: what would move a cursor or break a line is spelt out."""

from __future__ import annotations

JOINERS = "\u200c\u200d"
"""Say whether letters join, as Persian names and emoji need it; Python does not call them printable."""


def is_printable(text: str) -> bool:
    """Whether nothing in the text has to be spelt out."""
    return text.isprintable() or all(c.isprintable() or c in JOINERS for c in text)


def printable(text: str) -> str:
    """The text with control characters as escapes, such as \\x1b and \\n; letters and emoji stay."""
    if is_printable(text):
        return text
    return "".join(c if is_printable(c) else c.encode("unicode_escape").decode() for c in text)
