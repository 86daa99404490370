"""Hydra's groups for a recipe: `model=resnet18 training=fast training.accelerator=cpu` -> its dataclass."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from engines.errors import UsageError
from trainers.expression import ExpressionConfig
from trainers.options import from_mapping, override

CONFIGS = Path(__file__).parent / "configs"
GROUPS = ("model", "training", "data", "logging")


def expression_config(settings: Sequence[str], logger: str = "csv") -> ExpressionConfig:
    """The recipe's options. `data=FOLDER` is short for the folder's kind and path; `fit.` for `training.`.

    Without hydra-core only `key=value` is understood, and no choice of a group's file.
    """
    settings = [_spelt_out(setting) for setting in settings]
    settings = [part for setting in settings for part in setting]
    if not any(setting.startswith(("logging=", "logging.")) for setting in settings):
        settings.insert(0, f"logging.logger={logger}")
    if find_spec("hydra"):
        return from_mapping(ExpressionConfig(), _composed(settings))
    chosen = [setting for setting in settings if setting.partition("=")[0] in GROUPS]
    if chosen:
        raise UsageError(f"{chosen[0]}: groups are put together by Hydra; pip install hydra-core")
    return override(ExpressionConfig(), settings)


def _composed(settings: Sequence[str]) -> dict:
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose("expression", list(settings))
    except (HydraException, OmegaConfBaseException) as error:
        words = " ".join(str(error).partition("Config search path")[0].partition("See https")[0].split())
        raise UsageError(f"{words}; groups and their files: {_known()}") from None
    return dict(OmegaConf.to_container(composed, resolve=True))


def _spelt_out(setting: str) -> list[str]:
    key, equals, value = setting.partition("=")
    if key.startswith("fit."):
        return [f"training.{key.removeprefix('fit.')}{equals}{value}"]
    if key == "limit":
        return [f"data.limit={value}"]
    if key == "data" and value not in _files("data"):
        kind = "zips" if any(Path(value).glob("*.zip")) or not Path(value).is_dir() else "folders"
        return [f"data.kind={kind}", f"data.path={_quoted(value)}"]
    if key in ("data.path", "run", "model.start"):
        return [f"{key}={_quoted(value)}"]
    return [setting]


def _quoted(value: str) -> str:
    """A path may hold what Hydra's grammar reserves: spaces, commas, equals signs, brackets."""
    if not find_spec("hydra") or value[:1] in "'\"":
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _known() -> str:
    return ", ".join(f"{group}={'|'.join(_files(group))}" for group in GROUPS)
