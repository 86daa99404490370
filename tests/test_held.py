"""Training data held on the device: the same pictures and targets as the samples made one by one on the host."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from engines.calibration import shipped_faces
from engines.errors import UsageError
from engines.geometry import heatmaps_to_points
from trainers import batched_changes as changes
from trainers.attribute_sets import LabelledFaces
from trainers.attributes import AttributeSamples
from trainers.closed_set import ClosedSetConfig, ClosedSetSamples, train_one
from trainers.closed_set_faces import ClosedSet, Faces
from trainers.expression import ExpressionSamples
from trainers.expression_crops import draw_changed
from trainers.expression_data import Picture
from trainers.face_rows import FaceRecord
from trainers.ffhq import FfhqSamples
from trainers.fit import FitOptions
from trainers.held import HeldBatches, held_batches, made
from trainers.landmarks import LandmarkSamples
from trainers.recipes import train_recipe
from trainers.recognition import FaceSamples, FaceSet

CPU = torch.device("cpu")


def faces(count, size=144):
    """Real faces, aligned about as the sets are, (M, size, size, 3)."""
    portraits = [cv2.resize(face.image[40:200, 40:200], (size, size)) for face in shipped_faces()]
    return np.stack([portraits[i % 2] for i in range(count)])


def tensor(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


def pictures_of(x):
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy().astype(int)


def test_jitter_is_opencv_s_rotation_about_the_middle():
    rng = np.random.default_rng(0)
    (matrix,) = changes.jitter_matrices(rng, 1, 144, degrees=30.0, scale=0.2, shift=0.0)
    angle, factor = np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])), np.hypot(*matrix[0, :2])

    wanted = cv2.getRotationMatrix2D((71.5, 71.5), float(angle), float(factor))

    assert np.abs(matrix - wanted).max() < 1e-3
    assert abs(angle) <= 30 and abs(np.log(factor)) <= 0.2


def test_a_batch_is_warped_as_opencv_warps_each():
    rng = np.random.default_rng(1)
    pictures = faces(6)
    matrices = changes.jitter_matrices(rng, 6, 144, degrees=20.0, scale=0.1, shift=0.05)
    matrices = changes.mirrored(matrices, np.arange(6) % 2 == 0, 144)

    got = pictures_of(changes.warped(tensor(pictures), matrices, 112))

    for picture, matrix, crop in zip(pictures, matrices, got, strict=True):
        wanted = cv2.warpAffine(picture, matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(crop - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("level", [0, changes.LEVELS // 2, changes.LEVELS - 1])
def test_blur_and_lost_resolution_are_opencv_s(level):
    picture = faces(1)[0]
    share = level / (changes.LEVELS - 1)
    sigma = 0.5 + share * 1.5
    small = (round(144 * (0.25 + share * 0.55)),) * 2
    wanted = {
        "blur": cv2.GaussianBlur(picture, (2 * round(3 * sigma) + 1,) * 2, sigma),
        "linear": cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (144, 144)),
    }

    for kind, image in wanted.items():
        got = pictures_of(changes.resampled(tensor(picture[None]), kind, np.array([level])))[0]
        assert np.abs(got - image.astype(int)).max() <= 3
        assert np.abs(got - image.astype(int)).mean() < 0.6


def test_a_level_of_minus_one_leaves_a_picture_as_it_is():
    x = tensor(faces(2))

    assert torch.equal(x, changes.resampled(x, "blur", np.array([-1, -1])))
    assert torch.equal(x[1], changes.resampled(x, "blur", np.array([5, -1]))[1])


def test_grey_is_opencv_s_grey_and_only_where_it_is_chosen():
    pictures = faces(2)

    got = pictures_of(changes.greyed(tensor(pictures), np.array([True, False])))

    grey = cv2.cvtColor(cv2.cvtColor(pictures[0], cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert np.abs(got[0] - grey.astype(int)).max() <= 1
    assert (got[1] == pictures[1]).all()


def dots(count, rng):
    """Black pictures with a white dot at every landmark; boxes and points."""
    images, boxes, points = [], [], []
    for _ in range(count):
        five = np.float32([[70, 80], [120, 82], [96, 105], [76, 130], [114, 131]]) + rng.uniform(
            -8, 8, (5, 2)
        )
        image = np.zeros((220, 200, 3), np.uint8)
        for x, y in five:
            cv2.circle(image, (round(float(x) * 16), round(float(y) * 16)), 40, (255, 255, 255), -1, shift=4)
        images.append(image)
        boxes.append(np.float32([45, 40, 150, 165]))
        points.append(five.astype(np.float32))
    return images, np.stack(boxes), np.stack(points)


def test_held_landmarks_lie_where_the_picture_shows_them():
    rng = np.random.default_rng(2)
    samples = LandmarkSamples(*dots(6, rng))
    pictures = torch.from_numpy(samples.pictures()[0])
    draw = samples.draw(rng, 40)

    crops = pictures_of(changes.warped(tensor(pictures.numpy()[draw.rows]), draw.matrices, 128))

    points, peaks = heatmaps_to_points(draw.targets[0])
    inside = (peaks > 0.9) & (points > 4).all(2) & (points < 123).all(2)
    shown = [
        crops[i, round(float(y)), round(float(x)), 0]
        for i, k in zip(*np.nonzero(inside), strict=True)
        for x, y in [points[i, k]]
    ]
    assert len(shown) > 150 and min(shown) > 120
    left_of_right = points[:, 0, 0] < points[:, 1, 0]
    assert left_of_right.mean() > 0.95  # mirrored too: the image's left eye is the first


def test_held_landmarks_are_spread_as_those_of_the_host_s_samples():
    rng = np.random.default_rng(3)
    samples = LandmarkSamples(*dots(6, rng))
    samples.pictures()

    host = np.stack([heatmaps_to_points(samples.sample(rng)[1][None])[0][0] for _ in range(600)])
    held = heatmaps_to_points(samples.draw(rng, 600).targets[0])[0]

    assert np.abs(host.mean(0) - held.mean(0)).max() < 3
    assert np.abs(host.std(0) - held.std(0)).max() < 3


def labelled(count, share, age, masked=False):
    names = tuple(str(i) for i in range(count))
    emotion = np.full((count, 8), -1, np.float32)
    ages = np.full(count, age, np.float32)
    return LabelledFaces(faces(count), ages, np.ones(count, np.float32), emotion, names, share, 0.5, masked)


def test_held_attributes_come_from_each_set_by_its_share_with_their_own_labels():
    samples = AttributeSamples([labelled(3, 0.75, 10.0), labelled(50, 0.25, 60.0, masked=True)], 80)
    rng = np.random.default_rng(4)

    draw = samples.draw(rng, 2000)
    host = np.array([samples.sample(rng)[1] for _ in range(300)])

    age, female, emotion, weight, answers = draw.targets
    assert np.array_equal(age == 60, draw.rows >= 3) and draw.rows.max() < 53
    assert (age == 10).mean() == pytest.approx(0.75, abs=0.03)
    assert (host == 10).mean() == pytest.approx(0.75, abs=0.1)
    assert (female == 1).all() and (emotion == -1).all() and (weight == 0.5).all()
    assert (2000, 0) == answers.shape  # nobody was asked
    assert [3, 50] == [len(part) for part in samples.pictures()]
    assert (80, 80, 3) == samples.sample(rng)[0].shape and 80 == draw.size


def recognition_samples():
    teacher = np.random.default_rng(5).normal(size=(8, 3, 4)).astype(np.float32)
    return FaceSamples(FaceSet(faces(8), np.array([5, 5, 7, 7, -1, -1, 9, 9]), teacher), 4)


def test_held_faces_come_with_their_own_class_and_teacher():
    samples = recognition_samples()

    draw = samples.draw(np.random.default_rng(6), 50)

    assert np.array_equal(samples.label[draw.rows], draw.targets[0])
    assert all(
        (samples.teacher[row] == t).all(1).any() for row, t in zip(draw.rows, draw.targets[1], strict=True)
    )


def test_held_batches_are_repeated_by_their_number_and_differ_between_epochs():
    batches = HeldBatches(recognition_samples(), 4, 3, CPU, 281)
    first, again = batches[1][0], batches[1][0]
    other = HeldBatches(recognition_samples(), 4, 3, CPU, 282)[1][0]
    batches.first = 3

    assert torch.equal(first, again) and (4, 112, 112, 3) == tuple(first.shape)
    assert torch.uint8 is first.dtype
    assert not torch.equal(first, batches[1][0]) and not torch.equal(first, other)
    assert 3 == len(list(batches))


def test_held_faces_are_as_bright_and_as_varied_as_the_host_s():
    samples = recognition_samples()
    rng = np.random.default_rng(7)
    host = np.stack([samples.sample(rng)[0] for _ in range(200)]).astype(float)
    held = made(torch.from_numpy(samples.crops), samples.draw(rng, 200), rng)[0].numpy().astype(float)

    assert host.mean() == pytest.approx(held.mean(), abs=6)
    assert host.mean((1, 2, 3)).std() == pytest.approx(held.mean((1, 2, 3)).std(), abs=6)
    assert host.std((1, 2)).mean() == pytest.approx(held.std((1, 2)).mean(), abs=6)


def test_a_batch_in_perspective_is_warped_as_opencv_warps_each():
    rng = np.random.default_rng(8)
    pictures = faces(6)
    matrices = draw_changed(rng, np.arange(6), np.zeros(6, bool), ()).matrices
    assert np.abs(matrices[:, 2, :2]).max() > 1e-4  # some are in perspective

    got = pictures_of(changes.warped(tensor(pictures), matrices, 112))

    for picture, matrix, crop in zip(pictures, matrices, got, strict=True):
        wanted = cv2.warpPerspective(picture, matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(crop - wanted.astype(int)).max() <= 1


def test_a_frame_is_black_outside_its_oval_and_only_where_there_is_one():
    x = torch.full((2, 3, 112, 112), 200.0)
    ovals = np.float32([[45, 60, 0.1], [0, 0, 0]])

    got = pictures_of(changes.framed(x, ovals))

    mask = np.zeros((112, 112), np.uint8)
    cv2.ellipse(mask, ((55.5, 55.5), (90, 120), np.degrees(0.1)), 200, -1)
    assert 0.015 > (mask != got[0, ..., 0]).mean()
    assert (got[1] == 200).all()


def expression_samples(count=40):
    """Every fourth picture is masked: its right half is black."""
    pictures = [
        Picture("emotion_masked" if i % 4 == 0 else "ferplus", str(i), i % 5, str(i)) for i in range(count)
    ]
    crops = faces(count)
    crops[::4, :, 72:] = 0
    return ExpressionSamples(crops, pictures, balance=0.5)


def test_held_expressions_keep_their_labels_and_masked_ones_are_mostly_filled():
    samples = expression_samples()
    rng = np.random.default_rng(9)
    everything, again = (len(part) for part in samples.pictures())

    draw = samples.draw(rng, 4000)

    labels, wanted = draw.targets
    twice = draw.rows >= everything
    shown = np.where(twice, (draw.rows - everything) * 4, draw.rows)
    assert (40, 10) == (everything, again) and np.array_equal(labels, shown % 5)
    assert np.array_equal(wanted, samples.wanted[shown])
    assert twice[shown % 4 == 0].mean() == pytest.approx(0.75, abs=0.05)
    assert (samples.pictures()[1].max(3) > 0).mean() > 0.95
    frames = draw.frames[:, 0] > 0
    assert not frames[shown % 4 == 0].any()
    assert frames[shown % 4 > 0].mean() == pytest.approx(0.08, abs=0.02)


def test_held_expressions_look_as_the_host_s_do():
    samples = expression_samples()
    samples.masked[:] = False
    rng = np.random.default_rng(10)
    host = np.stack([samples.sample(rng)[0] for _ in range(300)]).astype(float)
    pictures = torch.from_numpy(np.concatenate(samples.pictures()))
    held = made(pictures, samples.draw(rng, 300), rng)[0].numpy().astype(float)

    assert np.abs(host.mean(0).mean(2) - held.mean(0).mean(2)).mean() < 6  # the mean face, in place
    assert host.mean((1, 2, 3)).std() == pytest.approx(held.mean((1, 2, 3)).std(), abs=6)


def test_held_thumbnails_are_each_seen_once_an_epoch_with_their_labels():
    age = np.arange(10, dtype=np.float32)
    mine = dataclasses.replace(labelled(10, 1.0, 0.0), age=age)
    samples = FfhqSamples(mine, labelled(4, 1.0, 60.0))
    rng = np.random.default_rng(11)

    ages = np.concatenate([samples.draw(rng, 5, first).targets[0] for first in (20, 25, 30, 35)])
    host = [samples[at][1] for at in range(20, 40)]

    assert list(age) == sorted(ages[::2]) and (ages[1::2] == 60).all()
    assert list(ages) == host  # the same faces at the same time


def closed_set_samples():
    encoded = tuple(cv2.imencode(".png", face)[1].tobytes() for face in faces(6))
    records = tuple(FaceRecord(f"{i}.png", str(i % 3)) for i in range(6))
    return ClosedSetSamples(Faces(records, encoded, np.arange(6) % 3), 10.0)


def test_held_persons_keep_their_class():
    samples = closed_set_samples()

    draw = samples.draw(np.random.default_rng(12), 30)

    assert np.array_equal(draw.rows % 3, draw.targets[0])
    assert np.array_equal(faces(6), samples.pictures()[0])


def test_a_closed_set_trains_on_held_data(tmp_path):
    faces = closed_set_samples().faces
    options = FitOptions(1, 2, 4, threads=1, accelerator="cpu", precision="32-true", gpu_data="true")
    config = ClosedSetConfig(run=str(tmp_path), loss="ce", embedding_size=8, fit=options)

    run = train_one(config, ClosedSet(("0", "1", "2"), faces, faces))

    assert 2 == torch.load(run / "last.ckpt", weights_only=True)["global_step"]


def test_data_are_held_only_where_it_is_asked_for_or_there_is_a_gpu():
    samples = recognition_samples()

    assert isinstance(held_batches(samples, FitOptions(gpu_data="true", accelerator="cpu")), HeldBatches)
    assert held_batches(samples, FitOptions(gpu_data="false")) is None
    assert held_batches(samples, FitOptions(gpu_data="auto", accelerator="cpu")) is None
    with pytest.raises(UsageError, match="is not for the detector's scenes"):
        held_batches(object(), FitOptions(gpu_data="true"))
    with pytest.raises(UsageError, match=r"is for fit\.devices=1"):
        held_batches(samples, FitOptions(gpu_data="true", devices=2))
    with pytest.raises(UsageError, match="is none of auto, true, false"):
        held_batches(samples, FitOptions(gpu_data="yes"))


@pytest.mark.parametrize("recipe", ["recognition", "attributes", "landmarks", "ffhq"])
def test_a_recipe_trains_on_held_data_and_resumes(sets, tmp_path, recipe):
    tiny = [
        "fit.epochs=1",
        "fit.steps_per_epoch=2",
        "fit.batch_size=4",
        "fit.threads=1",
        "fit.accelerator=cpu",
    ]
    asked = [*tiny, f"data={sets}", f"run={tmp_path}", "fit.gpu_data=true", "fit.precision=32-true"]

    train_recipe(recipe, asked)
    checkpoint = train_recipe(recipe, [*asked, "fit.epochs=2"])

    assert (checkpoint / "weights.safetensors").is_file()
    assert 1 == torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"]


def test_expression_trains_and_is_pretrained_on_held_data(expression_sets, tmp_path):
    tiny = ["epochs=1", "steps_per_epoch=2", "batch_size=4", "threads=1", "accelerator=cpu", "gpu_data=true"]
    asked = [f"training.{each}" for each in tiny] + ["model=vit_tiny", "model.pretrain_epochs=1"]

    checkpoint = train_recipe("expression", [*asked, f"data={expression_sets}", f"run={tmp_path}"])

    assert (checkpoint / "weights.safetensors").is_file()
    assert 2 == torch.load(tmp_path / "pretraining/last.ckpt", weights_only=True)["global_step"]
