"""Pictures as people have them: every kind is drawn here, written, and read as it was meant."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from flexkern.streams import pictures
from flexkern.streams.pictures import SUFFIXES, colour, decode, look, rgb, square

WIDE = np.zeros((8, 12, 3), np.uint8)
WIDE[:4, :6], WIDE[:4, 6:], WIDE[4:, :6], WIDE[4:, 6:] = (
    (250, 20, 30),
    (20, 240, 30),
    (20, 30, 230),
    (90, 90, 90),
)


def photograph(width: int, height: int, seed: int = 0) -> Any:
    """Soft shapes with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    grain = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), grain, 0.1)


def written(image: Any, kind: str, **options: Any) -> io.BytesIO:
    content = io.BytesIO()
    image.save(content, kind, **options)
    content.seek(0)
    return content


def read(image: Any, kind: str = "png", **options: Any) -> np.ndarray:
    background = options.pop("background", pictures.WHITE)
    return decode(written(image, kind, **options), "it", background=background)


# ----------------------------------------------------------------- kinds of files


EXACT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a.png": ("png", "RGB", {}),
    "b.png": ("png", "P", {}),
    "c.bmp": ("bmp", "RGB", {}),
    "d.gif": ("gif", "P", {}),
    "e.tif": ("tiff", "RGB", {}),
    "f.TIFF": ("tiff", "RGB", {"compression": "tiff_lzw"}),
    "g.webp": ("webp", "RGB", {"lossless": True}),
    "h.ppm": ("ppm", "RGB", {}),
    "i.pnm": ("ppm", "RGB", {}),
    "j.jpg": ("png", "RGB", {}),  # what a file is, its content says
}


@pytest.mark.parametrize("name", EXACT)
def test_files_without_loss(name: str, tmp_path: Path) -> None:
    kind, mode, options = EXACT[name]
    image = Image.fromarray(WIDE)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    image.save(tmp_path / name, kind, **options)
    assert Path(name).suffix.lower() in SUFFIXES
    np.testing.assert_array_equal(decode(tmp_path / name, "it"), WIDE)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jfif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpegs(suffix: str, mode: str, tmp_path: Path) -> None:
    image = photograph(48, 32).convert("L").convert("RGB") if mode == "L" else photograph(48, 32)
    image.convert(mode).save(tmp_path / f"a.{suffix}", "jpeg", quality=98, subsampling=0)
    found = decode(tmp_path / f"a.{suffix}", "it")
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 2


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "LA", "PA"]
)
def test_modes_that_are_opaque(mode: str) -> None:
    """White is white and black is black, and colours are what they are."""
    for grey in (0, 255):
        image = Image.new("RGB", (4, 4), (grey,) * 3)
        if mode == "LAB":
            image = Image.new("LAB", (4, 4), (grey, 128, 128))
        elif mode == "PA":
            image = image.quantize(2).convert("PA")
        else:
            image = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
        assert np.abs(np.asarray(rgb(image)).astype(int) - grey).max() <= 1, mode
    if mode not in ("1", "L", "LA", "LAB"):
        # Pillow converts a palette with transparency by way of RGB only.
        coloured = Image.fromarray(WIDE).quantize(8) if mode in ("P", "PA") else Image.fromarray(WIDE)
        found = np.asarray(rgb(coloured.convert(mode))).astype(int)
        assert np.abs(found - WIDE).max() <= 6, mode


def test_moving_pictures_give_their_first(tmp_path: Path) -> None:
    first, then = (Image.new("RGB", (6, 4), c) for c in ((200, 0, 0), (0, 0, 200)))
    for kind in ("gif", "webp", "tiff", "png"):
        options = {"lossless": True} if kind == "webp" else {}
        found = read(first, kind, save_all=True, append_images=[then], **options)
        assert (found == (200, 0, 0)).all(), kind


# ----------------------------------------------------------------- depth


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bits_are_scaled_by_their_depth(kind: str) -> None:
    values = np.array([[0, 128, 40000], [257, 65534, 65535]], np.uint16)
    found = read(Image.fromarray(values), kind)
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 156], [1, 255, 255]]
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))
    # The depth decides, not the picture's own range: a dark picture stays dark.
    assert read(Image.fromarray(values // 4), kind).max() == 64


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_deep_modes(mode: str) -> None:
    image = Image.new(mode, (2, 2), 40000)
    assert (np.asarray(rgb(image)) == 156).all()
    assert (square(Image.new(mode, (9, 6), 40000), 3) == 156).all()


def test_a_deep_picture_with_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[40000, 500]], np.uint16))
    image.info["transparency"] = 500
    assert np.asarray(rgb(image, (1, 2, 3))).tolist() == [[[156] * 3, [1, 2, 3]]]


def test_twelve_bits() -> None:
    image = Image.fromarray(np.array([[0, 4095, 2048]], np.uint16))
    image.tag_v2 = {258: (12,)}
    assert np.asarray(rgb(image))[0, :, 0].tolist() == [0, 255, 128]


def test_floating_pictures(tmp_path: Path) -> None:
    found = read(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "tiff")
    assert found[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (-0.1, 1.1, np.nan, np.inf):
        content = written(Image.fromarray(np.array([[0, wrong]], np.float32)), "tiff")
        with pytest.raises(ValueError, match=r"it: its pixels are floating \(mode F\) and must be in \[0, 1\]"):
            decode(content, "it")


@pytest.mark.parametrize("value", [-1, 65536])
def test_whole_numbers_that_have_no_place(value: int) -> None:
    content = written(Image.fromarray(np.array([[0, value]], np.int32)), "tiff")
    with pytest.raises(
        ValueError, match=r"it: its pixels \(mode I\) must have 16 bits, 0 to 65535, got .*; scale"
    ):
        decode(content, "it")


# ----------------------------------------------------------------- transparency


def _clear(mode: str) -> Any:
    """Left opaque and dark, the middle half transparent, the right gone."""
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(40, 40, 40, 255), (40, 40, 40, 128), (0, 0, 0, 0)]):
        image.putpixel((x, 0), pixel)
    return image.convert(mode) if mode != "P" else image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparent_pixels_lie_on_a_colour(mode: str) -> None:
    image = _clear("LA" if mode == "La" else "RGBA")
    if mode in ("RGBa", "La"):
        image = image.convert(mode)
    found = np.asarray(rgb(image)).astype(int)[0]
    assert np.abs(found - np.array([[40] * 3, [147] * 3, [255] * 3])).max() <= 1
    other = np.asarray(rgb(image, (0, 100, 200))).astype(int)[0]
    assert other[0].tolist() == [40] * 3
    assert np.abs(other[1] - (20, 70, 120)).max() <= 1
    assert other[2].tolist() == [0, 100, 200]


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparency_in_files(kind: str) -> None:
    found = read(_clear("RGBA"), kind, background=(9, 8, 7), **({"lossless": True} if kind == "webp" else {}))
    assert found[0, 0].tolist() == [40] * 3
    assert found[0, 2].tolist() == [9, 8, 7]


def test_transparency_of_palettes_and_single_colours() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 10, 10, 20, 20, 20, 30, 30, 30])
    assert read(palette, "png", transparency=1)[0].tolist() == [[10] * 3, [255] * 3, [30] * 3]
    assert read(palette, "gif", transparency=1)[0].tolist() == [[10] * 3, [255] * 3, [30] * 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow has one about such palettes
        found = read(palette, "png", transparency=bytes([255, 0, 255]), background=(5, 5, 5))
    assert found[0].tolist() == [[10] * 3, [5] * 3, [30] * 3]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert read(grey, "png", transparency=8)[0].tolist() == [[7] * 3, [255] * 3]
    assert read(grey.convert("RGB"), "png", transparency=(8, 8, 8))[0].tolist() == [[7] * 3, [255] * 3]


def test_two_colours() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    for kind in ("png", "tiff", "bmp", "ppm"):
        assert read(image, kind)[0].tolist() == [[0] * 3, [255] * 3], kind


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("white", TypeError),
        ((1, 2), TypeError),
        ((0, 0, 256), ValueError),
        ((0.5, 0, 0), TypeError),
        (7, TypeError),
    ],
)
def test_what_is_no_colour(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="background"):
        colour(value)
    assert colour(np.array([1, 2, 3])) == colour([1, 2, 3]) == (1, 2, 3)


# ----------------------------------------------------------------- orientation


def _exif(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_they_say(orientation: int, kind: str) -> None:
    image = photograph(48, 32)
    options: dict[str, Any] = {"quality": 98, "subsampling": 0} if kind == "jpeg" else {}
    options |= {"lossless": True} if kind == "webp" else {}
    content = written(image, kind, exif=_exif(orientation), **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content.getvalue()))))
    assert (upright.shape[:2] == (48, 32)) == (orientation > 4)
    np.testing.assert_array_equal(decode(content, "it"), upright)
    content.seek(0)
    # The middle is taken of the upright picture.
    np.testing.assert_array_equal(decode(content, "it", size=20), square(Image.fromarray(upright), 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_drafted_photographs_are_turned(orientation: int) -> None:
    """Sides that no scale divides: the ends of a drafted picture are where its own are."""
    content = written(photograph(333, 259), "jpeg", quality=95, exif=_exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content.getvalue())))
    found, all_pixels = decode(content, "it", size=16), square(upright, 16)
    assert np.abs(found.astype(int) - all_pixels).mean() < 2


def test_data_about_a_picture_that_are_damaged() -> None:
    content = written(Image.fromarray(WIDE), "png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(decode(content, "it"), WIDE)
    for wrong in (0, 9, 77):
        assert read(Image.fromarray(WIDE), exif=_exif(wrong)).shape == WIDE.shape


def test_a_wrong_shape_is_seen_after_turning_too() -> None:
    turned = written(Image.fromarray(WIDE), "png", exif=_exif(6))
    with pytest.raises(ValueError, match="the first is 12 x 8, number 1 is 8 x 12"):
        decode(turned, "it", "number 1", like=WIDE.shape)


# ----------------------------------------------------------------- drafts


@pytest.mark.parametrize("sides", [(1600, 1200), (1601, 1203), (900, 2000)])
@pytest.mark.parametrize("size", [64, 224])
def test_large_jpegs_are_drafted_close_to_all_their_pixels(sides: tuple[int, int], size: int) -> None:
    content = written(photograph(*sides), "jpeg", quality=90)
    drafted = decode(content, "it", size=size)
    full = Image.open(io.BytesIO(content.getvalue()))
    full.load()  # nothing can be drafted any more
    difference = np.abs(drafted.astype(int) - square(full, size))
    assert difference.mean() < 1.5
    assert difference.max() <= 12
    content.seek(0)
    np.testing.assert_array_equal(decode(content, "it", size=size), drafted)


def test_what_is_not_four_times_as_large_is_not_drafted() -> None:
    content = written(photograph(255, 500), "jpeg", quality=90)
    full = Image.open(io.BytesIO(content.getvalue()))
    full.load()
    np.testing.assert_array_equal(decode(content, "it", size=64), square(full, 64))


# ----------------------------------------------------------------- what is no picture


def test_programs_are_not_started() -> None:
    """An EPS that calls itself a PNG: Pillow would hand it to Ghostscript."""
    content = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="it: no image, or damaged: cannot identify"):
        decode(content, "it")


def test_looking_finds_what_the_first_bytes_tell() -> None:
    good = written(photograph(64, 48), "jpeg")
    look(good, "it", size=16)
    look(io.BytesIO(good.getvalue()[:700]), "it", size=16)  # damage inside is found when it is decoded
    with pytest.raises(ValueError, match="it: no image, or damaged"):
        decode(io.BytesIO(good.getvalue()[:700]), "it", size=16)
    with pytest.raises(ValueError, match="it: no image, or damaged"):
        look(io.BytesIO(b"hello"), "it", size=16)
    with pytest.raises(ValueError, match=r"it: a picture may have .* pixels, this one has 10240000 x 512 when"):
        look(written(Image.new("L", (20_000, 1)), "png"), "it", size=512)


def test_no_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "square", full)
    with pytest.raises(MemoryError):
        decode(written(Image.fromarray(WIDE), "png"), "it", size=4)
