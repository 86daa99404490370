import struct

import cv2
import numpy as np
import pytest

from daemon.images import expand_images, list_images, read_image
from engines.errors import MienError

SIZE = (30, 20)  # width, height


def picture():
    """Left half red, right half blue, a green band at the top; BGR."""
    width, height = SIZE
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (0, 0, 255)
    image[:, width // 2 :] = (255, 0, 0)
    image[:5] = (0, 255, 0)
    return image


def save(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def test_colour_comes_as_bgr(tmp_path):
    path = save(tmp_path / "a.png", picture())

    np.testing.assert_array_equal(picture(), read_image(path))


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    path = save(tmp_path / "a.png", grey)

    np.testing.assert_array_equal(np.dstack([grey] * 3), read_image(path))


def test_16_bit_becomes_8_by_its_upper_byte(tmp_path):
    path = save(tmp_path / "a.png", picture().astype(np.uint16) * 257)

    np.testing.assert_array_equal(picture(), read_image(path))


def test_16_bit_grey_becomes_8_bit_colour(tmp_path):
    path = save(tmp_path / "a.png", np.full((20, 30), 0x8000, np.uint16))

    image = read_image(path)

    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
    assert abs(int(image.mean()) - 128) <= 1


@pytest.mark.parametrize("full", [255, 65535])
def test_what_is_transparent_is_laid_on_white(tmp_path, full):
    kind = np.uint8 if full == 255 else np.uint16
    rgba = np.zeros((20, 30, 4), kind)
    rgba[:, 15:, 3] = full
    path = save(tmp_path / "a.png", rgba)

    image = read_image(path)

    assert (image[:, :15] == 255).all() and (image[:, 15:] == 0).all()


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_undone(tmp_path, orientation, turns):
    jpeg = cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif_orientation(jpeg, orientation))
    expected = np.rot90(picture(), turns)

    image = read_image(path)

    assert expected.shape == image.shape
    assert np.abs(image.astype(int) - expected).mean() < 20


def test_cmyk_is_converted(tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK file")
    path = tmp_path / "a.jpg"
    pillow.fromarray(picture()[:, :, ::-1].copy()).convert("CMYK").save(path, quality=100, subsampling=0)

    image = read_image(path)

    assert np.abs(image.astype(int) - picture())[8:, 2:12].mean() < 25


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.png", None, "no such file; check the path"),
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"these are words, not pixels", "not an image that can be read"),
        ("head.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_named_with_the_remedy(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(MienError, match=f"{name}: {words}"):
        read_image(path)


def test_a_single_pixel_is_too_small(tmp_path):
    path = save(tmp_path / "dot.png", np.zeros((1, 1, 3), np.uint8))

    with pytest.raises(MienError, match="1x1 px is too small"):
        read_image(path)


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(MienError, match="is a folder"):
        read_image(tmp_path)


def test_images_of_a_folder_come_by_name_without_hidden_ones(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".c.png", "in/d.webp", ".git/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == ["a.png", "b.JPG", "in/d.webp"]


def test_a_list_keeps_missing_files_to_be_reported(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").touch()
    missing = tmp_path / "none.png"

    assert [missing, tmp_path / "in/a.png"] == list(expand_images([missing, tmp_path / "in"]))


def test_a_folder_without_images_says_so(tmp_path):
    with pytest.raises(MienError, match="no images in this folder"):
        list(expand_images([tmp_path]))
