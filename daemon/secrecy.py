"""Credentials of URLs, kept out of logs, events and errors."""

from __future__ import annotations

import re

# Greedy up to the last "@" of the word: passwords with "@", "/" or "'" in them are common in camera URLs, and it is
# better to hide too much than a part of one. A '"' ends it, since lines of JSON are to stay such.
_USERINFO = re.compile(r"://[^\s\"]*@")
_KEY = r"[\w.-]*(?:user|usr|login|pass|psw|pw|token|secret|key|auth|sig)[\w.-]*="
_SECRET_PARAMETER = re.compile(rf"([?&;](?:{_KEY}|[up]=))[^&;\s'\"<>]+", re.IGNORECASE)
# Recorders take "/user=NAME_password=WORD_channel=1_stream=0.sdp": what follows the first of these is hidden, but for
# the channel.
_SECRET_PATH = re.compile(rf"(/{_KEY})[^\s\"]+?(?=_channel=|[\s\"]|$)", re.IGNORECASE)


def redact_url(text: str) -> str:
    """The URL, or any text with URLs in it, with user names, passwords and secret parameters hidden."""
    hidden = _USERINFO.sub("://***@", text)
    return _SECRET_PATH.sub(r"\1***", _SECRET_PARAMETER.sub(r"\1***", hidden))


def redact_source(source: str) -> str:
    """A camera's source, of which it is known where it begins and ends: whatever stands in its password."""
    scheme, mark, rest = source.partition("://")
    return redact_url(f"{scheme}{mark}***@{rest.rpartition('@')[2]}" if mark and "@" in rest else source)
