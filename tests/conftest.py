"""What every test leaves as it was."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_go_nowhere_closed() -> Iterator[None]:
    """A command under test sets logging up for its own stderr, which pytest closes when the test ends."""
    yield
    structlog.reset_defaults()
