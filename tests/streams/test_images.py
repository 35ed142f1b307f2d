"""Images from archives, folders and data sets, and their augmentation."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from flexkern.streams.augment import as_float, center_crop, random_resized_crop, resize
from flexkern.streams.datasets import images_of
from flexkern.streams.packs import Images, image_folder, image_folders, image_pack

Image = pytest.importorskip("PIL.Image")


def colours(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def encode(images: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes end to end, and where each image begins."""
    parts = []
    for image in images:
        content = io.BytesIO()
        Image.fromarray(image).save(content, kind, **({"lossless": True} if kind == "webp" else {}))
        parts.append(content.getvalue())
    ends = np.cumsum([0, *(len(p) for p in parts)])
    return np.frombuffer(b"".join(parts), np.uint8), ends


# ----------------------------------------------------------------- archives


def test_an_archive_of_pixels(tmp_path: Path) -> None:
    x, y = colours(6), np.array([0, 1, 2, 0, 1, 2], np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2], fine_names=["a", "b", "c"])
    train, test = image_pack(tmp_path / "a.npz")
    assert train.images.dtype == torch.uint8
    np.testing.assert_array_equal(train.images.numpy(), x.transpose(0, 3, 1, 2))
    assert train.labels.tolist() == y.tolist()
    assert train.labels.dtype == torch.int64
    assert train.names == test.names == ["a", "b", "c"]
    assert len(test.images) == 2


def test_an_archive_of_grey_pixels_has_three_equal_channels_and_numbers_for_names(tmp_path: Path) -> None:
    x = colours(3)[..., 0]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1, 0], x_test=x[..., None], y_test=[0, 3, 0])
    train, test = image_pack(tmp_path / "a.npz")
    for channel in range(3):
        np.testing.assert_array_equal(train.images[:, channel].numpy(), x)
    assert torch.equal(train.images, test.images)
    assert train.names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("kind", "own_offsets"), [("webp", False), ("png", True), ("jpg", False)])
def test_an_archive_of_encoded_images(kind: str, own_offsets: bool, tmp_path: Path) -> None:
    x, y = colours(4, 16), np.arange(4)
    content, offsets = encode(x, "jpeg" if kind == "jpg" else kind)
    name = f"x_{{}}_{kind}_off" if own_offsets else "x_{}_off"
    arrays = {f"x_{p}_{kind}": content for p in ("train", "test")} | {
        name.format(p): offsets for p in ("train", "test")
    }
    np.savez(tmp_path / "a.npz", y_train=y, y_test=y, **arrays)
    train, test = image_pack(tmp_path / "a.npz")
    assert torch.equal(train.images, test.images)
    if kind == "jpg":  # not lossless: what Pillow decodes
        expected = np.stack([
            np.asarray(Image.open(io.BytesIO(content[a:b].tobytes())))
            for a, b in itertools.pairwise(offsets)
        ])  # fmt: skip
    else:
        expected = x
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1).numpy(), expected)


GOOD: dict[str, Any] = {"x_train": colours(2), "y_train": [0, 1], "x_test": colours(2), "y_test": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "has no y_train; it holds"),
        ({"x_test": None}, "has no x_test, nor encoded images of it"),
        ({"y_train": [0, 1, 2]}, "has 2 images and 3 labels in train"),
        ({"y_train": [0.0, 1.0]}, "y_train .* must be a list of whole numbers >= 0, got float64"),
        ({"y_test": [0, -1]}, "y_test .* must be a list of whole numbers >= 0"),
        ({"x_train": colours(2).astype(np.float32)}, "images must be uint8"),
        ({"x_train": colours(2)[..., :2]}, "1 or 3"),
        ({"x_test": colours(2, 9)}, "different sizes: 8 x 8 and 9 x 9"),
        ({"names": ["a"]}, "names 1 classes but has labels up to 1"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "has 0 images"),
        ({"x_train": None, "x_train_png": np.zeros(5, np.uint8)}, "no x_train_off to say where"),
        ({"x_train": None, "x_train_png": np.zeros(5, np.uint8), "x_train_off": [0, 9]}, "rise from 0 to 5"),
        ({"x_train": None, "x_train_png": np.zeros(5, np.uint8), "x_train_off": [0, 3, 2]}, "rise from 0 to 5"),
    ],
)
def test_wrong_archives_are_explained(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{k: v for k, v in (GOOD | change).items() if v is not None})
    with pytest.raises(ValueError, match=message):
        image_pack(tmp_path / "a.npz")


def test_encoded_images_must_be_of_one_size(tmp_path: Path) -> None:
    (a, ends), (b, more) = encode(colours(2, 8), "png"), encode(colours(1, 9), "png")
    arrays = {"x_train_png": np.concatenate([a, b]), "x_train_off": np.concatenate([ends, ends[-1] + more[1:]])}
    np.savez(tmp_path / "a.npz", y_train=[0, 1, 1], x_test=colours(1), y_test=[0], **arrays)
    with pytest.raises(ValueError, match="the first is 8 x 8, number 2 is 9 x 9"):
        image_pack(tmp_path / "a.npz")


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image archive at"):
        image_pack(tmp_path / "none.npz")
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(ValueError, match="is not a NumPy archive"):
        image_pack(tmp_path / "a.npz")


# ----------------------------------------------------------------- folders


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_a_folder_of_folders(tmp_path: Path) -> None:
    x = colours(3)
    save(x[0], tmp_path / "cat" / "1.png")
    save(x[1], tmp_path / "ant" / "deep" / "2.png")
    save(x[2], tmp_path / "ant" / "1.png")
    (tmp_path / "ant" / "note.txt").write_text("no image")
    images = image_folder(tmp_path, size=8)
    assert images.names == ["ant", "cat"]
    assert images.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images.images.permute(0, 2, 3, 1).numpy(), x[[2, 1, 0]])


def test_images_of_a_folder_are_resized_and_the_middle_is_taken(tmp_path: Path) -> None:
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8] = 200  # the middle third
    save(stripes, tmp_path / "a" / "1.png")
    images = image_folder(tmp_path, size=4).images
    assert images.shape == (1, 3, 4, 4)
    assert (images == 200).all()
    assert image_folder(tmp_path, size=2).images.shape == (1, 3, 2, 2)


def test_training_and_test_folders(tmp_path: Path) -> None:
    x = colours(4)
    for i, path in enumerate(("train/a/1.png", "train/b/1.png", "val/b/1.png", "val/a/1.png")):
        save(x[i], tmp_path / path)
    train, test = image_folders(tmp_path, size=8)
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1).numpy(), x[:2])
    np.testing.assert_array_equal(test.images.permute(0, 2, 3, 1).numpy(), x[[3, 2]])
    assert test.labels.tolist() == [0, 1]
    (tmp_path / "val" / "b" / "1.png").unlink()
    with pytest.raises(ValueError, match="b' holds no images"):
        image_folders(tmp_path, size=8)
    save(x[2], tmp_path / "val" / "b" / "1.png")
    (tmp_path / "val" / "a" / "1.png").unlink()
    (tmp_path / "val" / "a").rmdir()  # or b would be the first class there, and the second in training
    with pytest.raises(ValueError, match="a' holds no images"):
        image_folders(tmp_path, size=8)


def test_tiny_imagenet_as_it_is_distributed(tmp_path: Path) -> None:
    x = colours(4)
    save(x[0], tmp_path / "train" / "n02" / "images" / "n02_0.png")
    save(x[1], tmp_path / "train" / "n01" / "images" / "n01_0.png")
    save(x[2], tmp_path / "val" / "images" / "val_0.png")
    save(x[3], tmp_path / "val" / "images" / "val_1.png")
    (tmp_path / "test").mkdir()
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_0.png\tn02\t0\t0\t62\t62\nval_1.png\tn01\t1\t1\t63\t63\n")
    save(x[3], tmp_path / "test" / "images" / "test_0.png")  # its labels were never published
    train, test = image_folders(tmp_path, size=8)
    assert train.names == ["n01", "n02"]
    assert test.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(test.images.permute(0, 2, 3, 1).numpy(), x[2:])
    annotations.write_text("val_0.png\tn09\t0\t0\t62\t62\n")
    with pytest.raises(ValueError, match="there is no class n09"):
        image_folders(tmp_path, size=8)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at"):
        image_folder(tmp_path / "none", size=8)
    with pytest.raises(ValueError, match="one folder a class; it has none"):
        image_folder(tmp_path, size=8)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a' holds no images"):
        image_folder(tmp_path, size=8)
    with pytest.raises(ValueError, match="size must be at least 1"):
        image_folder(tmp_path, size=0)
    with pytest.raises(FileNotFoundError, match="must hold a folder 'train'"):
        image_folders(tmp_path, size=8)


# ----------------------------------------------------------------- data sets


class MapStyle:
    """As torchvision's: pairs, and perhaps the names of the classes."""

    def __init__(self, rows: list[Any], **attributes: Any) -> None:
        self.rows = rows
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


class ClassLabel:
    """As Hugging Face's."""

    names = ("x", "y", "z")


X, Y = colours(3), [2, 0, 1]
CHW = torch.from_numpy(X).permute(0, 3, 1, 2)
PICTURES = [Image.fromarray(x) for x in X]


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (MapStyle(list(zip(PICTURES, Y, strict=True)), classes=["x", "y", "z"]), ["x", "y", "z"]),
        (MapStyle(list(zip(CHW, torch.tensor(Y), strict=True))), ["0", "1", "2"]),
        (MapStyle([[x, np.int64(y)] for x, y in zip(X, Y, strict=True)]), ["0", "1", "2"]),
        (MapStyle(list(zip(CHW.float() / 255, Y, strict=True))), ["0", "1", "2"]),
        (
            MapStyle([{"img": p, "fine_label": y} for p, y in zip(PICTURES, Y, strict=True)],
                     features={"img": None, "fine_label": ClassLabel()}),
            ["x", "y", "z"],
        ),
        (MapStyle([{"image": p, "label": y} for p, y in zip(PICTURES, Y, strict=True)]), ["0", "1", "2"]),
        (TensorDataset(CHW, torch.tensor(Y)), ["0", "1", "2"]),
        ((X, np.array(Y)), ["0", "1", "2"]),
        ((CHW.double() / 255, torch.tensor(Y)), ["0", "1", "2"]),
        (Images(CHW, torch.tensor(Y), ["x", "y", "z"]), ["x", "y", "z"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [None, 8])
def test_any_map_style_data_set(dataset: Any, names: list[str], size: int | None) -> None:
    images = images_of(dataset, size=size)
    assert torch.equal(images.images, CHW)
    assert images.labels.tolist() == Y
    assert images.labels.dtype == torch.int64
    assert images.names == names


def test_grey_images_have_three_equal_channels() -> None:
    grey = torch.from_numpy(X[..., 0])
    for dataset in ((grey, torch.tensor(Y)), (grey[:, None], torch.tensor(Y)), (X[..., :1], np.array(Y))):
        images = images_of(dataset).images
        assert torch.equal(images, grey[:, None].expand(-1, 3, -1, -1))
    one = images_of(MapStyle([(Image.fromarray(X[0, ..., 0]), 0)])).images
    assert torch.equal(one[0], grey[:1].expand(3, -1, -1))


def test_floating_images_are_rounded() -> None:
    levels = torch.tensor([0.0, 0.0019, 0.0021, 0.4999, 0.9979, 0.9982, 1.0])  # half a level is 0.00196
    images = images_of((levels.expand(1, 3, 7, 7), torch.tensor([0]))).images
    assert images[0, 0, 0].tolist() == [0, 0, 1, 127, 254, 255, 255]


def test_images_of_different_sizes_need_a_size() -> None:
    rows = [(colours(1, 8)[0], 0), (colours(1, 12)[0], 1)]
    with pytest.raises(ValueError, match="image 1 is 12 x 12 and image 0 is 8 x 8; pass size="):
        images_of(MapStyle(rows))
    both = images_of(MapStyle(rows), size=6).images
    assert both.shape == (2, 3, 6, 6)
    # An array is resized as the same picture is.
    pictures = [(Image.fromarray(x), y) for x, y in rows]
    assert torch.equal(images_of(MapStyle(pictures), size=6).images, both)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (iter([]), TypeError, "must be map-style"),
        ({"train": []}, TypeError, "take one of its splits"),
        (MapStyle([]), ValueError, "holds no images"),
        (TensorDataset(CHW), ValueError, "images and labels, got 1 tensors"),
        ((X, np.array([1, 2])), ValueError, "3 images and 2 labels"),
        (MapStyle([(X[0], 0, 1)]), TypeError, r"row 0 must be a pair \(image, label\)"),
        (MapStyle([{"image": X[0], "class": 1}]), TypeError, "it has image, class"),
        (MapStyle([("a.png", 1)]), TypeError, "image 0 must be a Pillow image, a tensor or an array, got str"),
        (MapStyle([(X[0], "cat")]), TypeError, "the label of image 0 must be a whole number >= 0, got 'cat'"),
        (MapStyle([(X[0], -1)]), TypeError, "got -1"),
        (MapStyle([(X[0], 0.5)]), TypeError, r"got 0\.5"),
        (MapStyle([(X[0].astype(np.int32), 1)]), TypeError, "must be uint8 or floating, got int32"),
        (MapStyle([(X[0] * 1.0, 1)]), ValueError, r"must be in \[0, 1\]"),
        (MapStyle([(torch.full((1, 2, 2), float("nan")), 1)]), ValueError, r"must be in \[0, 1\]"),
        (MapStyle([(torch.from_numpy(X[0]), 1)]), ValueError, "a tensor's come first"),
    ],
)
def test_wrong_data_sets_are_explained(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images_of(dataset)


# ----------------------------------------------------------------- augmentation


def test_resizing_and_cropping() -> None:
    x = as_float(torch.from_numpy(colours(2, 16)).permute(0, 3, 1, 2))
    assert x.dtype == torch.float32
    assert float(x.max()) <= 1
    wide = torch.cat([x, x.flip(3)], 3)
    assert resize(wide, 8).shape == (2, 3, 8, 16)
    assert resize(wide.transpose(2, 3), 24).shape == (2, 3, 48, 24)
    assert torch.equal(resize(x, 16), x)
    assert float(resize(x, 40).min()) >= 0  # bicubic overshoots; the result is cut to [0, 1]
    middle = center_crop(wide, 10)
    assert torch.equal(middle, wide[..., 3:13, 11:21])
    with pytest.raises(ValueError, match="at least 17 x 17"):
        center_crop(x, 17)
    # As Pillow resizes, which rounds to whole numbers after each of its two passes: half a grey level, spread
    # by weights whose sizes add up to 1.18 at most, and half a level more. (Middle greys: it also cuts there.)
    grey = colours(1, 16)[0] // 2 + 64
    expected = np.asarray(Image.fromarray(grey).resize((12, 12), Image.Resampling.BICUBIC)) / 255
    got = resize(as_float(torch.from_numpy(grey).permute(2, 0, 1)[None]), 12)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() <= (0.5 * 1.18 + 0.5) / 255


def test_crops_are_boxes_of_the_asked_size_and_shape() -> None:
    """Two channels hold each pixel's own position, so that a crop tells which box it is."""
    n, height, width, size = 4000, 48, 64, 9
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    images = torch.stack([across, down]).expand(n, 2, height, width)
    generator = torch.Generator().manual_seed(0)
    crops = random_resized_crop(images, size, scale=(0.2, 0.5), flip=0.25, generator=generator)
    assert crops.shape == (n, 2, size, size)
    # Positions are linear, and so is the resampling: differences between columns give the box's width. The
    # outermost half pixel is the border's, repeated, so columns and rows within are taken.
    step_x = (crops[:, 0, 4, 6] - crops[:, 0, 4, 2]) / 4
    step_y = (crops[:, 1, 6, 4] - crops[:, 1, 2, 4]) / 4
    box_width, box_height = step_x.abs() * size, step_y * size
    area, ratio = box_width * box_height, box_width * width / (box_height * height)
    # float32 positions in [0, 1], interpolated and subtracted, times 9/4: a few ulps of 6e-8 each.
    slack = 1e-4
    assert float(area.min()) >= 0.2 - slack
    assert float(area.max()) <= 0.5 + slack
    inside = (box_width < 1 - slack) & (box_height < 1 - slack)
    assert float(ratio[inside].min()) >= 3 / 4 - 1e-3
    assert float(ratio[inside].max()) <= 4 / 3 + 1e-3
    # Uniform area, log-uniform ratio, a quarter mirrored: five standard errors (wrong once in 1.7 million).
    assert abs(float(area.mean()) - 0.35) < 5 * 0.3 / 12**0.5 / n**0.5 + slack
    assert abs(float(ratio.log().mean())) < 5 * float(np.log(16 / 9)) / 12**0.5 / n**0.5 + slack
    assert abs(float((step_x < 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5
    # All of the box is in the image, and boxes reach all its sides.
    middle = crops[:, :, 4, 4]
    for axis, side in ((0, box_width), (1, box_height)):
        low, high = middle[:, axis] - side / 2, middle[:, axis] + side / 2
        assert float(low.min()) >= -slack
        assert float(high.max()) <= 1 + slack
        assert float(low.min()) < 0.01
        assert float(high.max()) > 0.99


def test_the_whole_image_unmirrored_is_the_image() -> None:
    x = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    same = random_resized_crop(x, 10, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)
    mirrored = random_resized_crop(x, 10, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1)
    # Positions are found in float32, -1..1 times 5 pixels: off by some 2^-21 of a pixel, times steps below 1.
    torch.testing.assert_close(same, x, atol=5e-6, rtol=0)
    torch.testing.assert_close(mirrored, x.flip(3), atol=5e-6, rtol=0)


def test_the_border_is_repeated_where_a_crop_looks_beyond_it() -> None:
    """The outermost half of the outermost pixels has no neighbour: it must not fade to black."""
    white = torch.ones(50, 3, 6, 6)
    # Twice as many pixels as the image has, so that the outermost lie outside of the outermost pixels' middles.
    for scale in ((1.0, 1.0), (0.05, 1.0)):
        crops = random_resized_crop(white, 12, scale=scale, generator=torch.Generator().manual_seed(0))
        # Weights of four neighbours, which sum to 1 but for their roundings.
        torch.testing.assert_close(crops, torch.ones_like(crops), atol=1e-6, rtol=0)
    ramp = (torch.arange(6.0)[None, None, None] / 8).expand(1, 3, 6, 6)
    whole = random_resized_crop(ramp, 12, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)
    torch.testing.assert_close(whole[..., 0], ramp[..., [0] * 12][:, :, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(whole[..., -1], ramp[..., [5] * 12][:, :, 0], atol=1e-6, rtol=0)


def test_crops_are_reproducible_and_may_be_of_no_images() -> None:
    x = torch.rand(4, 3, 8, 8)
    first, second = (random_resized_crop(x, 5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(random_resized_crop(x, 5), first)
    assert random_resized_crop(x[:0], 5).shape == (0, 3, 5, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: random_resized_crop(x, 5, scale=(0.0, 1.0)), ValueError, "scale must be a range"),
        (lambda x: random_resized_crop(x, 5, ratio=(2.0, 1.0)), ValueError, "ratio must be a range"),
        (lambda x: random_resized_crop(x, 5, flip=1.5), ValueError, "flip must be a probability"),
        (lambda x: random_resized_crop(x, 0), ValueError, "size must be at least 1"),
        (lambda x: random_resized_crop((x * 255).byte(), 5), TypeError, "images must be floating"),
        (lambda x: resize(x[0], 5), ValueError, r"must be \[n, channels, height, width\]"),
    ],
)
def test_wrong_augmentation_is_named(
    call: Callable[[torch.Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(torch.rand(2, 3, 8, 8))
