"""`mien average`: the mean of several runs' weights, its threshold and its card."""

import dataclasses

import pytest
import torch

from engines.checkpoint import load_checkpoint, make_network, save_checkpoint
from engines.errors import MienError, UsageError
from engines.spec import ModelSpec
from trainers.averaging import average, sections
from trainers.recipes import put_into_card

ARGS = {"embedding_size": 8, "widths": [4, 4, 4, 8]}
SPEC = ModelSpec("embedder", "embedder", "FaceResNet", ARGS, (112, 112), ("embedding",), threshold=0.4)
CARD = (
    "# embedder\n\nAn embedder.\n\n## Data\n\nfaces of {0}\n\n## Licence\n\nfree\n\n"
    "## Figures\n\nold\n\n## Made by\n\nrun {0}\n"
)


def checkpoint(folder, seed, **changes):
    torch.manual_seed(seed)
    spec = dataclasses.replace(SPEC, **changes)
    save_checkpoint(folder, make_network(spec), spec, CARD.format(seed))
    return folder


@pytest.fixture
def two(tmp_path):
    return [
        checkpoint(tmp_path / name, seed, threshold=t) for name, seed, t in (("a", 1, 0.4), ("b", 2, 0.5))
    ]


def test_weights_and_thresholds_are_the_mean(two, tmp_path):
    spec = average(two, tmp_path / "mean")

    (mean, found), (a, _), (b, _) = (load_checkpoint(folder) for folder in (tmp_path / "mean", *two))
    states = [network.state_dict() for network in (mean, a, b)]
    for name, value in states[0].items():
        wanted = (states[1][name] + states[2][name]) / 2 if value.is_floating_point() else states[1][name]
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-4)  # kept in half precision
    assert 0.45 == spec.threshold == found.threshold and spec.weights_sha256 == found.weights_sha256


def test_what_one_spec_says_and_another_leaves_to_the_default_is_alike(two, tmp_path):
    silent = checkpoint(tmp_path / "silent", 3, network_args={"embedding_size": 8})
    told = checkpoint(tmp_path / "told", 4, network_args={"embedding_size": 8, "widths": [32, 64, 128, 256]})

    assert "embedder" == average([silent, told], tmp_path / "mean").task
    with pytest.raises(MienError, match="told: has another network_args than"):
        average([two[0], told], tmp_path / "other")


def test_its_card_says_what_each_was_made_from_and_has_no_old_figures(two, tmp_path):
    average(two, tmp_path / "mean")
    put_into_card(tmp_path / "mean", "recognition", {"LFW": "99 %"})

    card = sections(tmp_path / "mean" / "card.md")
    assert ["", "Data", "Licence", "Figures", "Made by"] == list(card)
    assert "faces of 1\n\nfaces of 2" == card["Data"] and "free" == card["Licence"]
    assert "run 1" in card["Made by"] and "run 2" in card["Made by"]
    assert "99 %" in card["Figures"] and "old" not in card["Figures"]


def test_with_data_the_threshold_is_chosen_on_them(two, sets, tmp_path):
    spec = average(two, tmp_path / "mean/embedder", str(sets))

    assert spec.threshold == load_checkpoint(tmp_path / "mean/embedder")[1].threshold != 0.45
    with pytest.raises(UsageError, match="call the folder embedder"):
        average(two, tmp_path / "other", str(sets))
    assert not (tmp_path / "other").exists()


def test_checkpoints_without_cards_are_averaged_and_it_is_said(two, tmp_path):
    for folder in two:
        (folder / "card.md").unlink()

    average(two, tmp_path / "mean")

    assert (tmp_path / "mean/card.md").read_text().count("Not recorded.") == 4


def test_what_cannot_be_averaged_is_told(two, tmp_path):
    other = checkpoint(tmp_path / "c", 3, network_args=ARGS | {"embedding_size": 16})

    with pytest.raises(MienError, match=r"/c: has another network_args than .*/a"):
        average([*two, other], tmp_path / "mean")
    with pytest.raises(UsageError, match="name two checkpoints or more"):
        average(two[:1], tmp_path / "mean")
    with pytest.raises(UsageError, match="is one of the checkpoints"):
        average(two, two[0])
    with pytest.raises(MienError, match="is not a checkpoint"):
        average([*two, tmp_path / "nothing"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
