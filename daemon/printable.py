"""Text of others, made fit for a terminal: what would move a cursor or break a line is spelt out."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters as escapes, such as \\x1b and \\n; letters and emoji stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
