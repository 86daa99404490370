"""Options and groups of a training on the command line, with Hydra and without."""

import dataclasses

import pytest
import yaml

from engines.errors import UsageError
from trainers.budget import seconds_of
from trainers.composition import CONFIGS, expression_config
from trainers.expression import ExpressionConfig
from trainers.fit import FitOptions
from trainers.recipes import make_config
from trainers.run_loggers import make_logger


def test_the_groups_without_a_choice_are_the_recipe_s_defaults():
    assert expression_config([]) == ExpressionConfig()


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("training.gpu_data=false", "gpu_data", "false"),
        ("fit.gpu_data=auto", "gpu_data", "auto"),
        ("training.logger=tensorboard", "logger", "tensorboard"),
        ("fit.logger=csv", "logger", "csv"),
    ],
)
def test_every_option_of_a_training_is_known_to_its_group(setting, name, value):
    config = expression_config([setting], "mlflow")

    assert value == getattr(config.fit, name)
    known = yaml.safe_load((CONFIGS / "training" / "default.yaml").read_text())
    assert [field.name for field in dataclasses.fields(FitOptions)] == list(known)


def test_groups_and_keys_are_composed():
    config = expression_config(["model=resnet18", "training=fast", "training.accelerator=cpu", "run=a b,c=d"])

    assert ("resnet18", "imagenet") == (config.model.kind, config.model.start)
    assert (6, 64, "cpu") == (config.training.epochs, config.training.batch_size, config.fit.accelerator)
    assert "a b,c=d" == config.run


@pytest.mark.parametrize(
    "model", ["cnn", "cnn_large", "resnet18", "efficientnet_b0", "vit_tiny", "face_trunk"]
)
@pytest.mark.parametrize("training", ["default", "fast", "testing_2_epochs"])
def test_every_choice_of_the_groups_exists(model, training):
    config = expression_config(
        [f"model={model}", f"training={training}", "data=folders", "logging=tensorboard"]
    )

    assert (model, "folders", "tensorboard") == (config.model.kind, config.data.kind, config.fit.logger)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model=vgg", "model=cnn|cnn_large"),
        ("training.epoch=3", "training.epoch"),
        ("training.epochs=many", "is not of type int"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_wrong_choice_is_refused_with_what_there_is(setting, words):
    with pytest.raises(UsageError) as caught:
        expression_config([setting])

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_logger_of_the_command_gives_way_to_the_user_s():
    assert "mlflow" == make_config("expression", [], "mlflow").fit.logger
    assert "csv" == make_config("expression", ["logging=csv"], "mlflow").fit.logger
    assert "csv" == make_config("landmarks", ["fit.logger=csv"], "mlflow").fit.logger


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(UsageError, match="csv, mlflow, tensorboard"):
        make_logger("wandb", tmp_path)


def test_a_choice_of_a_group_without_hydra_says_what_to_install(monkeypatch):
    monkeypatch.setattr("trainers.composition.find_spec", lambda name: None)

    with pytest.raises(UsageError, match="pip install hydra-core"):
        expression_config(["model=cnn"])
    assert "x" == expression_config(["run=x", "data.limit=3"]).run


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1h30m", 5400), ("0.5m", 30)])
def test_a_budget_is_written_with_its_unit(text, seconds):
    assert seconds == seconds_of(text)


@pytest.mark.parametrize("text", ["8", "m", "8x", "", "-8m"])
def test_a_budget_without_a_unit_is_refused(text):
    with pytest.raises(UsageError, match="write it as"):
        seconds_of(text)


def test_every_recipe_has_the_same_way_to_be_told_how_long():
    assert all(
        isinstance(make_config(name, ["fit.epochs=3"]).fit, FitOptions) for name in ("detector", "expression")
    )
    assert 3 == make_config("expression", ["fit.epochs=3"]).fit.epochs
