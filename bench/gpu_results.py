"""What bench.gpu has measured: kept after every step, so that a call that is cut off loses one step at most."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu_engines import TimeUpError, told


@dataclass(slots=True)
class Results:
    """By a key that says what it is: a row, or a list of rows. A row that failed has an "error"."""

    path: Path
    until: float
    keep_errors: bool = False
    rows: dict[str, Any] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)

    def step(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this key; once a call, what failed before is measured again.

        None where the time is up. Whatever goes wrong becomes the row's error.
        """
        if key in self.rows and (key in self.tried or self.keep_errors or not failed(self.rows[key])):
            return self.rows[key]
        if time.monotonic() > self.until:
            self.left.add(key)
            return None
        print(f"{key} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            self.rows[key] = measure()
        except TimeUpError:
            self.left.add(key)
            return None
        except Exception as error:
            traceback.print_exc()
            self.rows[key] = {"error": told(error)}
            self._stop_where_the_gpu_is_lost()
        self.tried.add(key)
        self.left.discard(key)
        print(f"{key}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        self.save()
        return self.rows[key]

    def _stop_where_the_gpu_is_lost(self) -> None:
        """After an illegal access every call of this process fails, whatever it measures; a new process may go on."""
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:
            self.until = time.monotonic() - 1
            print(f"the GPU is lost to this process ({told(error)}): begin again", file=sys.stderr)
            print("with --keep-errors, which goes on after the step that failed", file=sys.stderr)

    def save(self) -> None:
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        half.replace(self.path)


def rows_of(value: Any) -> list[dict[str, Any]]:
    """A key's rows."""
    return value if isinstance(value, list) else [value]


def failed(value: Any) -> bool:
    return any("error" in row for row in rows_of(value))


def earlier(path: Path, gpu: str) -> dict[str, Any]:
    """What an earlier call measured on such a GPU. What is another's, or damaged, is laid aside."""
    try:
        rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        rows = {}
    if rows.get("machine", {}).get("gpu") == gpu:
        return rows
    aside = path.with_name("gpu_before.json")
    path.replace(aside)
    print(f"{path}: not measured on {gpu}; moved to {aside.name}", file=sys.stderr)
    return {}
