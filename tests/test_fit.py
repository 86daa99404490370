"""What a training refuses before it starts."""

import pytest
import torch.distributed as distributed

from engines.errors import UsageError
from engines.networks import FaceResNet
from trainers.fit import FitOptions, RandomSamples, Recipe, fit


@pytest.fixture
def process_group():
    """What Lightning leaves in the process that trained by DDP."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_second_training_on_two_devices_in_one_process_is_refused(tmp_path, process_group):
    recipe = Recipe(FaceResNet(8), FitOptions(devices=2, accelerator="cpu"))

    with pytest.raises(UsageError, match=r"fit.devices=2: one training a command; .* goes on with .*second"):
        fit(recipe, RandomSamples(4), tmp_path / "second")

    assert not (tmp_path / "second").exists()
