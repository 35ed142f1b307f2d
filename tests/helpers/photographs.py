"""A folder of photographs as people have them: drawn motifs, each in all kinds of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["KINDS", "MOTIFS", "TASKS", "draw", "save", "write_folder"]

HEIGHT, WIDTH = 72, 96


def draw(motif: str, rng: np.random.Generator) -> Any:
    """A Pillow image, RGB. Stripes of two motifs differ in their direction only, so that a photograph that is
    not turned as its EXIF says is named wrongly."""
    from PIL import Image

    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    dy, dx = rng.uniform(-6, 6, 2)
    pixels = MOTIFS[motif](y + dy, x + dx) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _paint(where: np.ndarray, inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
    return np.where(where[..., None], np.array(inside, float), np.array(outside, float))


MOTIFS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "red ball": lambda y, x: _paint((y - 36) ** 2 + (x - 48) ** 2 < 24**2, (220, 30, 30), (245, 240, 230)),
    "Grüne Wiese": lambda y, x: _paint(y > 40, (40, 150, 40), (150, 200, 250)),
    "night, clear": lambda y, x: _paint((x // 6 * 7 + y // 6 * 5) % 31 < 2, (255, 255, 230), (10, 10, 60)),
    "zebra": lambda y, x: _paint(x // 12 % 2 == 0, (250, 250, 250), (15, 15, 15)),
    "blinds": lambda y, x: _paint(y // 12 % 2 == 0, (250, 250, 250), (15, 15, 15)),
    "chessboard": lambda y, x: _paint((x // 18 + y // 18) % 2 == 0, (240, 220, 180), (110, 60, 30)),
}  # fmt: skip
TASKS = (("red ball", "Grüne Wiese"), ("night, clear", "zebra"), ("blinds", "chessboard"))


# ------------------------------------------------------------------ kinds of files


def _jpeg(image: Any, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=92)


def _turned(image: Any, path: Path) -> None:
    """Stored as the camera held it, on its side; EXIF says how to turn it."""
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(_pillow().Transpose.ROTATE_90).save(path.with_suffix(".JPEG"), exif=exif)


def _grey16(image: Any, path: Path) -> None:
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    _pillow().fromarray(deep).save(path.with_suffix(".png"))


def _whole(image: Any, path: Path) -> None:
    """Mode I: 32 bits, of which 16 are used."""
    deep = np.asarray(image.convert("L")).astype(np.int32) * 257
    _pillow().fromarray(deep, "I").save(path.with_suffix(".tif"))


def _floating(image: Any, path: Path) -> None:
    """Mode F, in [0, 1]."""
    _pillow().fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255).save(path.with_suffix(".tiff"))


def _transparent(image: Any, path: Path) -> None:
    """The corners, under which there is black, are transparent."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:6] = alpha[-6:] = 0
    pixels = np.asarray(image) * (alpha[..., None] > 0)
    both = np.concatenate([pixels.astype(np.uint8), alpha[..., None]], 2)
    _pillow().fromarray(both, "RGBA").save(path.with_suffix(".png"))


def _cmyk(image: Any, path: Path) -> None:
    image.convert("CMYK").save(path.with_suffix(".jpg"), quality=92)


def _palette(image: Any, path: Path) -> None:
    image.quantize(32).save(path.with_suffix(".png"))


def _plain(suffix: str) -> Callable[[Any, Path], None]:
    return lambda image, path: image.save(path.with_suffix(suffix))


def _pillow() -> Any:
    from PIL import Image

    return Image


KINDS: dict[str, Callable[[Any, Path], None]] = {
    "jpeg": _jpeg, "turned": _turned, "grey16": _grey16, "whole": _whole, "floating": _floating,
    "transparent": _transparent, "cmyk": _cmyk, "palette": _palette, "gif": _plain(".gif"),
    "tif": _plain(".tif"), "bmp": _plain(".bmp"), "webp": _plain(".webp"),
}  # fmt: skip


def save(image: Any, kind: str, path: Path) -> Path:
    """Writes the image as a file of that kind; the path gets its suffix. Where it is then."""
    before = set(path.parent.iterdir())
    KINDS[kind](image, path)
    (made,) = set(path.parent.iterdir()) - before
    return made


def write_folder(
    root: Path, motifs: tuple[str, ...] = tuple(MOTIFS), *, rounds: int = 1, seed: int = 0
) -> Path:
    """A folder for each motif, with ``rounds`` files of each kind; and what a person's folders have besides:
    a broken file (in the first one), hidden ones, notes, and a picture that nobody here reads."""
    rng = np.random.default_rng(seed)
    for motif in motifs:
        folder = root / motif
        folder.mkdir(parents=True)
        for n in range(rounds):
            for kind in KINDS:
                save(draw(motif, rng), kind, folder / f"{kind} {n}")
        (folder / ".DS_Store").write_bytes(b"\0\1\2")
        (folder / f"._{motif}.jpg").write_bytes(b"of macOS")
        (folder / "notes.txt").write_text("taken in spring")
    (root / ".thumbnails").mkdir()
    (root / motifs[0] / "drawing.svg").write_text("<svg/>")
    whole = next((root / motifs[0]).glob("jpeg*.jpg")).read_bytes()
    (root / motifs[0] / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return root
