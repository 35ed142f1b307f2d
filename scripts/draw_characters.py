"""Draws printed characters in Omniglot's layout: a folder for each alphabet, in it one for each character.

    python scripts/draw_characters.py --out characters

The glyphs are those of the DejaVu fonts that come with matplotlib, so that nothing is downloaded. They are
**printed characters, not Omniglot**: 20 images of a character are of several faces (sans, serif, mono; upright,
slanted, bold), each under a random affine map and with thinner or thicker strokes, where Omniglot has 20
people. Black on white, 105 x 105 pixels, as Omniglot's. A character that looks like one of an earlier alphabet
(a Cyrillic a) is left out: nobody could tell the two apart.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE, GLYPH, DRAWINGS = 105, 64, 20
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
)  # fmt: skip
# First and last code point of each alphabet; what of them is no letter, or in no font, is left out.
ALPHABETS = {
    "Latin": (0x61, 0x7A), "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F), "Armenian": (0x561, 0x586),
    "Georgian": (0x10D0, 0x10F0), "Hebrew": (0x5D0, 0x5EA), "Arabic": (0x621, 0x64A), "Lao": (0xE81, 0xEAE),
    "Tifinagh": (0x2D30, 0x2D65), "Nko": (0x7CA, 0x7EA), "Ogham": (0x1681, 0x169A),
}  # fmt: skip
ALIKE = 0.85  # of their ink, that two characters share, in place and size


def fonts() -> dict[str, str]:
    """Paths of the fonts by their names."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return {name: str(folder / f"{name}.ttf") for name in FONTS}


def glyph(path: str, character: str) -> Image.Image:
    """The character in the middle of a picture: white ink on black."""
    font = ImageFont.truetype(path, GLYPH)
    picture = Image.new("L", (SIZE, SIZE))
    left, top, right, bottom = font.getbbox(character)
    at = ((SIZE - left - right) / 2, (SIZE - top - bottom) / 2)
    ImageDraw.Draw(picture).text(at, character, fill=255, font=font)
    return picture


def drawing(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph turned, sheared, scaled and moved, with other strokes: black ink on white."""
    angle, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)
    scale = rng.uniform(0.8, 1.2, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(1 / scale)  # from the new picture to the old one
    middle = np.full(2, SIZE / 2)
    offset = middle - back @ (middle + rng.uniform(-8, 8, 2))
    numbers = (*back[0], offset[0], *back[1], offset[1])
    moved = picture.transform((SIZE, SIZE), Image.Transform.AFFINE, numbers, Image.Resampling.BICUBIC)
    # A blurred glyph cut at another level has thinner or thicker strokes.
    level = rng.uniform(50, 150)
    ink = np.asarray(moved.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64) > level
    return Image.fromarray(np.where(ink, 0, 255).astype(np.uint8))


def looks_like(picture: Image.Image) -> np.ndarray:
    """The ink, cut out and brought to one size."""
    box = picture.getbbox()
    return np.asarray(picture.crop(box).resize((24, 24)), dtype=np.float64) / 255


def is_new(shape: np.ndarray, known: Iterable[np.ndarray]) -> bool:
    """Whether no known character shares nearly all of its ink."""
    return all(np.minimum(shape, k).sum() < ALIKE * np.maximum(shape, k).sum() for k in known)


def draw(out: Path, seed: int = 0) -> dict[str, int]:
    """Writes all alphabets; returns how many characters each has."""
    found: dict[str, int] = {}
    known: list[np.ndarray] = []
    paths = fonts()
    has = {name: FT2Font(path).get_charmap() for name, path in paths.items()}
    for number, (alphabet, (first, last)) in enumerate(ALPHABETS.items()):
        count = 0
        for code in range(first, last + 1):
            character = chr(code)
            having = [paths[name] for name in FONTS if code in has[name]]
            if not having or not unicodedata.category(character).startswith("L"):
                continue
            pictures = [glyph(path, character) for path in having]
            shape = looks_like(pictures[0])
            if not is_new(shape, known):
                continue
            known.append(shape)
            count += 1
            folder = out / alphabet / f"character{count:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(DRAWINGS):
                rng = np.random.default_rng([seed, number, code, i])
                drawing(pictures[i % len(pictures)], rng).save(folder / f"{code:04x}_{i + 1:02d}.png")
        found[alphabet] = count
    return found


def main() -> None:
    """Draws them, and says how many there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = draw(given.out, given.seed)
    print(f"{sum(found.values())} characters in {given.out}: {found}")


if __name__ == "__main__":
    main()
