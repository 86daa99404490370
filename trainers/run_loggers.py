"""Where a run's figures go: a CSV file, MLflow in a local folder, or TensorBoard."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from engines.errors import UsageError

LOGGERS = ("csv", "mlflow", "tensorboard")
RUN_ID_FILE = "mlflow_run.txt"


def default_logger() -> str:
    """MLflow where it is installed, else CSV."""
    return "mlflow" if find_spec("mlflow") else "csv"


def make_logger(kind: str, run: Path) -> Logger:
    """A Lightning logger. MLflow's runs lie in `mlruns` beside the runs' folders, for `mlflow ui` to compare."""
    if kind not in LOGGERS:
        raise UsageError(f"logger {kind!r} is none of {', '.join(LOGGERS)}")
    if kind == "mlflow":
        return _mlflow(run)
    if kind == "tensorboard":
        if not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise UsageError("logger tensorboard: is not installed; pip install tensorboard")
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(run, name="tensorboard", version="")
    return CSVLogger(run, name="log")


def _mlflow(run: Path) -> Logger:
    if not find_spec("mlflow"):
        raise UsageError("logger mlflow: is not installed; pip install mlflow, or choose csv")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it calls home, unasked
    from lightning.pytorch.loggers import MLFlowLogger

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    run.mkdir(parents=True, exist_ok=True)
    store = run.resolve().parent / "mlruns"
    store.mkdir(exist_ok=True)
    known = run / RUN_ID_FILE
    more: dict[str, Any] = {"run_id": known.read_text(encoding="utf-8")} if known.is_file() else {}
    logger = MLFlowLogger(
        run.name,
        run_name=run.name,
        tracking_uri=f"sqlite:///{store / 'mlflow.db'}",
        artifact_location=store.as_uri(),
        **more,
    )
    known.write_text(str(logger.run_id), encoding="utf-8")  # a resumed run goes on in the same MLflow run
    return logger
