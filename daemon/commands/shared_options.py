"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Backend = Annotated[str | None, typer.Option(help="auto, tensorrt, aot_inductor, openvino or eager.")]
ConfigPath = Annotated[Path | None, typer.Option(help="The configuration; of its cameras nothing is used.")]
