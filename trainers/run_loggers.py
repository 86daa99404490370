"""Where a run's figures go: a CSV file, MLflow in a local folder, or TensorBoard."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger

from engines.errors import UsageError

LOGGERS = ("csv", "mlflow", "tensorboard")
PACKAGES = {"mlflow": ("mlflow",), "tensorboard": ("tensorboard", "tensorboardX")}  # one of them will do
RUN_ID_FILE = "mlflow_run.txt"


def default_logger() -> str:
    """MLflow where it is installed, else CSV."""
    return "mlflow" if find_spec("mlflow") else "csv"


def check_logger(kind: str) -> None:
    """Raises UsageError for a logger that is unknown or not installed; to be called before data are read."""
    if kind not in LOGGERS:
        raise UsageError(f"logger {kind!r} is none of {', '.join(LOGGERS)}")
    if kind in PACKAGES and not any(find_spec(package) for package in PACKAGES[kind]):
        raise UsageError(f"logger {kind}: is not installed; pip install {kind}, or choose csv")


def make_logger(kind: str, run: Path) -> Logger:
    """A Lightning logger. MLflow's runs lie in `mlruns` beside the runs' folders, for `mlflow ui` to compare."""
    check_logger(kind)
    if kind == "mlflow":
        return _mlflow(run)
    if kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(run, name="tensorboard", version="")
    return CSVLogger(run, name="log")


def _mlflow(run: Path) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it calls home, unasked
    from lightning.pytorch.loggers import MLFlowLogger

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    run.mkdir(parents=True, exist_ok=True)
    store = run.resolve().parent / "mlruns"
    store.mkdir(exist_ok=True)
    known, place = run / RUN_ID_FILE, f"sqlite:///{store / 'mlflow.db'}"
    run_id = known.read_text(encoding="utf-8") if known.is_file() else ""
    more = {"run_id": run_id} if run_id and _is_there(run_id, place) else {}
    logger = MLFlowLogger(
        run.name, run_name=run.name, tracking_uri=place, artifact_location=store.as_uri(), **more
    )
    known.write_text(str(logger.run_id), encoding="utf-8")  # a resumed run goes on in the same MLflow run
    return logger


def _is_there(run_id: str, place: str) -> bool:
    """Whether a run is in the store, and not thrown away: a run's folder may have been copied without it."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return MlflowClient(place).get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False
