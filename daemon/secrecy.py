"""Credentials of URLs, kept out of logs, events and errors."""

from __future__ import annotations

import re

# Greedy up to the last "@" of the word: passwords with "@" or "/" in them are common in camera URLs, and it
# is better to hide too much than a part of one.
_USERINFO = re.compile(r"://[^\s'\"<>]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:user|login|pass|pwd|token|secret|key|auth|sig)[\w.-]*=)[^&;\s'\"<>]+", re.IGNORECASE
)


def redact_url(text: str) -> str:
    """The URL, or any text with URLs in it, with user names, passwords and secret parameters hidden."""
    return _SECRET_PARAMETER.sub(r"\1***", _USERINFO.sub("://***@", text))
