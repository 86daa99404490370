"""Draw the shipped clip: two public-domain portraits that pan, grow, cross, leave and return.

Run in the repository root: `.venv/bin/python samples/make_clip.py`. The pictures come with matplotlib
(Grace Hopper, US Navy) and scikit-image (Eileen Collins, NASA); both are works of the US government.
"""

import argparse
from pathlib import Path

import av
import cv2
import matplotlib.cbook
import numpy as np
import skimage.data
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS, SECONDS = 854, 480, 20, 14
Picture = NDArray[np.uint8]
# Time in s, centre of the face in px, height of the cut-out in px; straight lines between.
HOPPER_PATH = [
    (0, 190, 190, 440), (3, 300, 190, 440), (5.5, 590, 190, 450),
    (8, 640, 200, 520), (11, 560, 195, 490), (14, 600, 190, 450),
]  # fmt: skip
COLLINS_PATH = [
    (0, 660, 180, 430), (3, 540, 180, 430), (5.5, 230, 185, 420), (7, -220, 185, 420), (9, -220, 185, 420),
    (10.5, 200, 180, 440), (14, 250, 175, 480),
]  # fmt: skip


def portraits() -> dict[str, Picture]:
    """BGR pictures (H, W, 3) by file name."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    return {"grace_hopper.jpg": hopper, "eileen_collins.jpg": skimage.data.astronaut()[..., ::-1].copy()}


def cut_out(
    picture: Picture, person: tuple[int, int, int, int], seed: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Where the person is (H, W), 0..1, soft at the edge: GrabCut from a rectangle and a sure part, both xywh."""
    mask = np.full(picture.shape[:2], cv2.GC_BGD, np.uint8)
    x, y, w, h = person
    mask[y : y + h, x : x + w] = cv2.GC_PR_FGD
    x, y, w, h = seed
    mask[y : y + h, x : x + w] = cv2.GC_FGD
    cv2.setRNGSeed(281)
    cv2.grabCut(picture, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_MASK)
    person_mask = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(person_mask)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    solid = cv2.morphologyEx((labels == largest).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    return cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 1.5)


def background() -> NDArray[np.float32]:
    """A dull wall with soft large shapes, (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(281)
    coarse = rng.uniform(70, 150, (4, 6, 1)) + rng.uniform(-12, 12, (4, 6, 3))
    wall = cv2.resize(coarse.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return wall + rng.normal(0, 2, (HEIGHT, WIDTH, 1)).astype(np.float32)


def place(path: list[tuple[float, ...]], seconds: float) -> tuple[float, float, float]:
    times, *values = zip(*path, strict=True)
    x, y, height = (float(np.interp(seconds, times, v)) for v in values)
    return x, y, height


def paste(
    canvas: NDArray[np.float32],
    picture: Picture,
    alpha: NDArray[np.float32],
    face: tuple[int, int],
    at: tuple[float, float, float],
) -> None:
    """Draw a cut-out so that its face centre comes to `at` (x, y, height of the whole cut-out)."""
    x, y, height = at
    scale = height / picture.shape[0]
    matrix = np.array([[scale, 0, x - scale * face[0]], [0, scale, y - scale * face[1]]], np.float32)
    size = (canvas.shape[1], canvas.shape[0])
    shown = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_AREA)
    weight = cv2.warpAffine(alpha, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
    canvas[:] = canvas * (1 - weight) + shown * weight


def write_clip(target: Path) -> None:
    pictures = portraits()
    hopper, collins = pictures["grace_hopper.jpg"], pictures["eileen_collins.jpg"]
    hopper_alpha = cut_out(hopper, (30, 20, 460, 580), (190, 130, 130, 380))
    collins_alpha = cut_out(collins, (20, 5, 420, 505), (130, 40, 170, 440))
    wall = background()
    with av.open(target, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "26", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FPS * SECONDS):
            canvas = wall.copy()
            paste(canvas, collins, collins_alpha, (222, 120), place(COLLINS_PATH, i / FPS))
            paste(canvas, hopper, hopper_alpha, (258, 185), place(HOPPER_PATH, i / FPS))
            frame = av.VideoFrame.from_ndarray(np.clip(canvas, 0, 255).astype(np.uint8), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().folder
    for name, picture in portraits().items():
        cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    write_clip(folder / "two_people.mp4")
    print(f"{folder / 'two_people.mp4'}: written")


if __name__ == "__main__":
    main()
