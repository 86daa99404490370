"""The pictures of `mien evaluate --plots FOLDER`: one function a picture, PNG at 150 dpi."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import Floats, Image
from trainers.calibration import calibration_bins, expected_calibration_error
from trainers.detection_metrics import Judged

P = ParamSpec("P")
BLUE, ORANGE, GREEN, RED, GREY = "#2f6db3", "#e07b28", "#3f9b5f", "#c0413b", "#8a8f98"
COLOURS = (BLUE, GREEN, ORANGE, RED)
STYLE = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.titlesize": 11,
    "savefig.dpi": 150,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def styled(draw: Callable[P, None]) -> Callable[P, None]:
    """Draws in the one style, without a display; says what is missing where matplotlib is."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            import matplotlib
        except ImportError:
            raise MienError(
                "plots need matplotlib; pip install 'mien[train]', or leave --plots out"
            ) from None
        with matplotlib.rc_context(STYLE):
            draw(*args, **kwargs)

    return drawn


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of its own, in no window, and its axes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, drawn.subplots(1, columns)


def save(drawn: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    print(f"picture: {path}")


@styled
def precision_recall(
    path: Path, name: str, judged: Mapping[str, Mapping[float, Judged]], threshold: float
) -> None:
    """Precision over recall of every detector, a panel a size; the dot is ours at its default threshold."""
    sizes = list(next(iter(judged.values())))
    drawn, axes = figure(4 * len(sizes), 3.7, len(sizes))
    for ax, side in zip(axes, sizes, strict=True):
        for colour, (key, by_side) in zip(COLOURS, judged.items(), strict=False):
            one = by_side[side]
            precision, recall = one.curve()
            ax.plot(recall, precision, color=colour, label=f"{key}  AP {one.average_precision():.3f}")
            if colour == BLUE:
                p, r = one.precision_recall(threshold)
                ax.plot(r, p, "o", color=colour, markersize=6)
        ax.set(xlim=(0, 1.01), ylim=(0.5, 1.005), xlabel="recall", title=f"faces ≥ {side:.0f} px")
        ax.legend(loc="lower left")
    axes[0].set_ylabel("precision")
    drawn.suptitle(f"Detector: {name}, IoU 0.5")
    save(drawn, path)


@styled
def cumulative_errors(path: Path, errors: Mapping[str, np.ndarray]) -> None:
    """Share of faces within an error; `errors` are NME of each face (N,), infinite where it was missed."""
    drawn, ax = figure(5.2, 3.8)
    steps = np.linspace(0, 0.15, 301)
    for colour, (key, error) in zip(COLOURS, errors.items(), strict=False):
        within = (error[:, None] <= steps).mean(0)
        found = error[np.isfinite(error)].mean()
        ax.plot(steps * 100, within * 100, color=colour, label=f"{key}  mean {found:.1%}")
    ax.axvline(10, color=GREY, linewidth=1, linestyle="--")
    ax.text(10.1, 3, "failed beyond 10 %", color=GREY, fontsize=8)
    ax.set(xlim=(0, 15), ylim=(0, 101), xlabel="landmark error, % of interocular distance")
    ax.set(ylabel="faces within, %", title="Landmarks: cumulative error")
    ax.legend(loc="center right")
    save(drawn, path)


def landmark_sheet(
    path: Path,
    crops: Sequence[Image],
    heatmaps: Sequence[Floats],
    points: Sequence[Floats],
    truths: Sequence[Floats],
    errors: Sequence[float],
    columns: int = 8,
) -> None:
    """Faces with human points (green rings) and ours (red dots), and beneath each its heatmaps."""
    cells = []
    for crop, maps, found, truth, error in zip(crops, heatmaps, points, truths, errors, strict=True):
        cells.append(np.vstack((marked(crop, found, truth, error), glowing(crop, maps))))
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows))
    print(f"picture: {path}")


ZOOM = 2
HUES = np.array([[80, 160, 255], [255, 170, 60], [90, 220, 120], [230, 110, 230], [80, 230, 235]], np.float32)


def marked(crop: Image, found: Floats, truth: Floats, error: float) -> Image:
    big = cv2.resize(crop, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    for x, y in truth * ZOOM:
        cv2.circle(
            big, (round(float(x) * 16), round(float(y) * 16)), 5 * 16, (90, 230, 90), 1, cv2.LINE_AA, 4
        )
    for x, y in found * ZOOM:
        cv2.circle(
            big, (round(float(x) * 16), round(float(y) * 16)), 3 * 16, (60, 60, 255), -1, cv2.LINE_AA, 4
        )
    for colour, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(big, f"{error:.1%}", (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thick, cv2.LINE_AA)
    return big.astype(np.uint8, copy=False)


def glowing(crop: Image, heatmaps: Floats) -> Image:
    """The crop, darkened and grey, with each heatmap (5, h, w) in a colour of its own."""
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.float32) * 0.35
    light = np.tensordot(np.clip(heatmaps, 0, 1).transpose(1, 2, 0), HUES, 1)  # (h, w, 3)
    size = (crop.shape[1] * ZOOM, crop.shape[0] * ZOOM)
    light = cv2.resize(light.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    return np.clip(cv2.resize(grey, size) + light, 0, 255).astype(np.uint8)


@styled
def verification(path: Path, sets: Mapping[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> None:
    """ROC of each set (similarity (P,), same (P,)), and the first set's similarities with the threshold."""
    drawn, (left, right) = figure(9.2, 3.8, 2)
    for colour, (key, (similarity, same)) in zip(COLOURS, sets.items(), strict=False):
        others = np.sort(similarity[~same])[::-1]
        rates = np.geomspace(max(1e-4, 1 / len(others)), 1, 200)
        cuts = others[np.minimum((rates * len(others)).astype(int), len(others) - 1)]
        accepted = 1 - np.searchsorted(np.sort(similarity[same]), cuts, "right") / same.sum()
        left.plot(rates, accepted, color=colour, label=key)
        far, tar = (similarity[~same] >= threshold).mean(), (similarity[same] >= threshold).mean()
        if far > 0:
            left.plot(far, tar, "o", color=colour)
    left.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.01), xlabel="false accept rate")
    left.set(ylabel="true accept rate", title="Verification: ROC")
    left.legend(loc="lower right")
    key, (similarity, same) = next(iter(sets.items()))
    bins = np.linspace(similarity.min(), similarity.max(), 60)
    right.hist(similarity[~same], bins, color=ORANGE, alpha=0.75, label="two persons", density=True)
    right.hist(similarity[same], bins, color=BLUE, alpha=0.75, label="one person", density=True)
    right.axvline(threshold, color=GREY, linestyle="--", linewidth=1.2)
    right.text(threshold, right.get_ylim()[1] * 0.97, f" default {threshold:.2f}", color=GREY, va="top")
    right.set(xlabel="cosine similarity", ylabel="density", title=f"Similarities, {key}")
    right.legend(loc="upper left")
    save(drawn, path)


@styled
def confusion(path: Path, table: np.ndarray, labels: Sequence[str], title: str) -> None:
    """Counts (C, C), true by found: coloured by the share of the row, with both written in."""
    share = table / np.maximum(1, table.sum(1, keepdims=True))
    drawn, ax = figure(6.4, 5.6)
    ax.grid(False)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(labels)):
        for j in range(len(labels)):
            if not table[i, j]:
                continue
            colour = "white" if share[i, j] > 0.55 else "#27323f"
            ax.text(j, i - 0.12, f"{share[i, j]:.0%}", ha="center", va="center", color=colour, fontsize=9)
            ax.text(j, i + 0.24, f"{table[i, j]}", ha="center", va="center", color=colour, fontsize=6)
    ticks = range(len(labels))
    ax.set_xticks(ticks, labels, rotation=35, ha="right")
    ax.set_yticks(ticks, [f"{name} ({n})" for name, n in zip(labels, table.sum(1), strict=True)])
    ax.set(xlabel="found", ylabel="true", title=title)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    save(drawn, path)


@styled
def ages(path: Path, age: Floats, found: Floats, female: Floats) -> None:
    """Found over labelled age, a dot a face, with the running median, and the mean error of each decade."""
    drawn, (left, right) = figure(9.4, 4.2, 2)
    for value, colour, name in ((0, BLUE, "male"), (1, ORANGE, "female")):
        chosen = female == value
        left.scatter(age[chosen], found[chosen], s=5, alpha=0.35, color=colour, linewidths=0, label=name)
    top = float(max(age.max(), found.max())) + 3
    left.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle="--")
    decades = np.arange(0, 100, 10)
    inside = [(age >= low) & (age < low + 10) for low in decades]
    full = [i for i, rows in enumerate(inside) if rows.sum() >= 5]
    middle = [float(np.median(age[inside[i]])) for i in full]
    left.plot(middle, [float(np.median(found[inside[i]])) for i in full], "-o", color="#27323f", markersize=3)
    left.set(xlim=(0, top), ylim=(0, top), xlabel="labelled age, years", ylabel="found age, years")
    left.set_title(f"Age: mean error {np.abs(found - age).mean():.2f} years")
    left.legend(loc="upper left", markerscale=3)
    error = [float(np.abs(found - age)[inside[i]].mean()) for i in full]
    right.bar([f"{decades[i]}s" for i in full], error, color=BLUE, width=0.7)
    for place, (i, value) in enumerate(zip(full, error, strict=True)):
        right.text(place, value, f"{value:.1f}\n({inside[i].sum()})", ha="center", va="bottom", fontsize=7)
    right.set(
        ylabel="mean error, years",
        title="by labelled decade (faces)",
        ylim=(0, max(error, default=1.0) * 1.2),
    )
    right.grid(axis="x", visible=False)
    save(drawn, path)


@styled
def reliability(path: Path, sets: Mapping[str, tuple[Floats, np.ndarray]], title: str) -> None:
    """Accuracy over confidence, a panel a set of (probabilities (N, C), label (N,)); below, how often each occurs."""
    drawn, axes = figure(4.2 * len(sets), 3.9, len(sets))
    for ax, (key, (probabilities, label)) in zip(np.atleast_1d(axes), sets.items(), strict=True):
        sure, accuracy, count = calibration_bins(probabilities, label)
        low = np.arange(len(count)) / len(count)
        ax.bar(low, np.nan_to_num(accuracy), 1 / len(count), align="edge", color=BLUE, edgecolor="white")
        gap = np.nan_to_num(sure - accuracy)
        ax.bar(low, gap, 1 / len(count), bottom=np.nan_to_num(accuracy), align="edge", color=RED, alpha=0.35)
        ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        ax.plot(
            low + 0.5 / len(count), count / count.sum(), color="#27323f", linewidth=1, label="share of faces"
        )
        error = expected_calibration_error(probabilities, label)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=f"{key}: ECE {error:.3f}")
        ax.legend(loc="upper left")
    np.atleast_1d(axes)[0].set_ylabel("accuracy")
    drawn.suptitle(title)
    save(drawn, path)


@styled
def history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Losses, age error and agreement over the epochs of the `ffhq` recipe."""
    drawn, axes = figure(11, 3.4, 3)
    epochs = [row["epoch"] for row in rows]
    panels = (
        ("loss", (("train_loss", "training", GREY), ("val_loss", "validation", BLUE)), 1.0),
        (
            "age, mean difference in years",
            (("train_mae", "training", GREY), ("val_mae", "validation", BLUE)),
            1.0,
        ),
        ("agreement, %", (("val_gender", "gender", BLUE), ("val_emotion", "emotion", ORANGE)), 100.0),
    )
    for ax, (title, lines, factor) in zip(axes, panels, strict=True):
        for key, label, colour in lines:
            values = [row[key] * factor for row in rows if key in row]
            ax.plot(epochs[-len(values) :], values, "-o", color=colour, markersize=3, label=label)
        ax.set(xlabel="epoch", title=title)
        ax.legend()
    best = min(rows, key=lambda row: row["val_loss"])
    axes[0].plot(best["epoch"], best["val_loss"], "*", color=ORANGE, markersize=11)
    drawn.suptitle("FFHQ recipe; the star is the best epoch")
    save(drawn, path)
