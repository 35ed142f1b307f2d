"""Data sets of other libraries as sources: the pixels that memory would have, labels without decoding."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from flexkern.streams import Images, ImageSource, images_of
from flexkern.streams.image_source import identity_of

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 7, 9, 3), dtype=np.uint8)
LABELS = [1, 0, 2, 2, 1, 0]


class Folder(Dataset):
    """As torchvision's ImageFolder: files, their labels beside them, and a count of what was decoded."""

    def __init__(self, folder: Path, *, transform: Any = None, target_transform: Any = None) -> None:
        self.samples = []
        for i, (pixels, label) in enumerate(zip(COLOURS, LABELS, strict=True)):
            Image.fromarray(pixels).save(folder / f"{i}.png")
            self.samples.append((str(folder / f"{i}.png"), label))
        self.targets = [label for _, label in self.samples]
        self.classes = ["ant", "bee", "cat"]
        self.transform, self.target_transform = transform, target_transform
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.asked.append(i)
        path, label = self.samples[i]
        image: Any = Image.open(path).convert("RGB")
        return (self.transform(image) if self.transform else image), (
            self.target_transform(label) if self.target_transform else label
        )


def to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def other_label(label: int) -> int:
    return 2 - label


def check(dataset: Any, names: list[str], labels: list[int] = LABELS) -> Images:
    eager, lazy = images_of(dataset, size=5), images_of(dataset, size=5, lazy=True)
    assert isinstance(lazy.images, ImageSource)
    assert torch.equal(lazy.images.tensor(), eager.images)
    assert lazy.labels.tolist() == eager.labels.tolist() == labels
    assert lazy.names == eager.names == names
    again = pickle.loads(pickle.dumps(lazy.images))
    assert torch.equal(again[[2, 0]].tensor(), eager.images[[2, 0]])
    return lazy


def test_a_folder_as_torchvision_has_it(tmp_path: Path) -> None:
    lazy = check(Folder(tmp_path), ["ant", "bee", "cat"])
    assert lazy.images.name(1) == str(tmp_path / "1.png")
    few = Folder(tmp_path)
    images_of(few, size=5, lazy=True)
    assert set(few.asked) == {0, 5}  # of the others nothing is decoded
    check(Folder(tmp_path, transform=to_tensor), ["ant", "bee", "cat"])
    check(Folder(tmp_path, target_transform=other_label), ["ant", "bee", "cat"], [1, 2, 0, 0, 1, 2])


def test_parts_of_data_sets(tmp_path: Path) -> None:
    whole = Folder(tmp_path)
    part = check(Subset(whole, [4, 2, 1]), ["ant", "bee", "cat"], [1, 2, 0])
    assert part.images.name(0) == str(tmp_path / "4.png")
    whole.asked.clear()
    images_of(Subset(whole, [4, 2, 1]), size=5, lazy=True)
    assert set(whole.asked) == {4, 1}
    check(ConcatDataset([Subset(whole, [4]), whole]), ["0", "1", "2"], [1, *LABELS])


def test_labels_that_are_not_those_of_the_rows_are_not_believed(tmp_path: Path) -> None:
    dataset = Folder(tmp_path)
    dataset.targets = [0, 0, 0, 0, 0, 0]
    assert images_of(dataset, size=5, lazy=True).labels.tolist() == LABELS


def test_tensors_and_pairs() -> None:
    x, y = torch.from_numpy(COLOURS).permute(0, 3, 1, 2), torch.tensor(LABELS)
    for dataset in (TensorDataset(x, y), (x, y), (COLOURS, np.array(LABELS)), (x[:, :1] / 255, y)):
        check(dataset, ["0", "1", "2"])
    check(Images(x, y, ["ant", "bee", "cat"]), ["ant", "bee", "cat"])
    rows = [(Image.fromarray(pixels), label) for pixels, label in zip(COLOURS, LABELS, strict=True)]
    lazy = check(rows, ["0", "1", "2"])
    check(Images(lazy.images, lazy.labels, ["ant", "bee", "cat"]), ["ant", "bee", "cat"])


def test_arrays_with_transparency() -> None:
    clear = np.full((1, 2, 2, 4), 100, np.uint8)
    clear[0, 0, 0, 3], clear[0, 1, 1, 3] = 0, 255
    for dataset in (
        (clear, np.array([0])),
        (torch.from_numpy(clear).permute(0, 3, 1, 2) / 255, torch.tensor([0])),
    ):
        for options in ({}, {"size": 2}, {"size": 2, "lazy": True}):
            found = images_of(dataset, background=(0, 50, 200), **options).images
            pixels = (found if isinstance(found, torch.Tensor) else found.tensor())[0]
            assert pixels[:, 0, 0].tolist() == [0, 50, 200]
            assert pixels[:, 1, 1].tolist() == [100] * 3


def test_pictures_are_taken_as_they_are_meant() -> None:
    turned = Image.fromarray(COLOURS[0])
    turned.getexif()[0x0112] = 6
    assert images_of([(turned, 0)]).images.shape == (1, 3, 9, 7)
    deep = Image.new("I;16", (4, 4), 40000)
    assert (images_of([(deep, 0)]).images == 156).all()


def test_encoded_images_in_rows(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(COLOURS[0]).save(content, "png")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    rows = [{"image": {"bytes": content.getvalue(), "path": None}, "label": 0},
            {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "label": 1}]  # fmt: skip
    images = images_of(rows).images
    assert (images.permute(0, 2, 3, 1).numpy() == COLOURS[0]).all()
    rows[1]["image"] = {"bytes": b"hello"}
    with pytest.raises(ValueError, match="dataset: image 1: no image, or damaged"):
        images_of(rows, size=5, lazy=True)


def test_identities(tmp_path: Path) -> None:
    def identity(dataset: Any, **options: Any) -> str:
        return identity_of(images_of(dataset, size=5, lazy=True, **options).images)

    plain = Folder(tmp_path)
    first = identity(plain)
    assert identity(Folder(tmp_path)) != first  # written again
    last = identity(plain)
    assert identity(plain) == last
    assert identity(plain, background=(0, 0, 0)) != last
    # A transform may do anything: the pixels are asked.
    changed = Folder(tmp_path, transform=to_tensor)
    of_pixels = identity(changed)
    assert identity(Folder(tmp_path, transform=to_tensor)) == of_pixels
    x, y = torch.from_numpy(COLOURS).permute(0, 3, 1, 2), torch.tensor(LABELS)
    assert identity((x, y)) == of_pixels
    assert identity((x + 1, y)) != of_pixels


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lazy": True}, ValueError, "size: pass size="),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 2.5}, TypeError, r"size must be a whole number, got 2\.5"),
        ({"lazy": "yes"}, TypeError, "lazy must be True or False"),
        ({"background": 255}, TypeError, "background must be red, green and blue"),
        ({"workers": -1}, ValueError, "workers must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images_of((COLOURS, np.array(LABELS)), **options)


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_needed(tmp_path: Path) -> None:
    dataset = Folder(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    images = images_of(dataset, size=5, lazy=True).images
    with pytest.raises(ValueError, match="dataset: image 3: "):
        images.tensor()
    (tmp_path / "5.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match="dataset: image 5: "):
        images_of(dataset, size=5, lazy=True)


# ----------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return pytest.importorskip("datasets", reason="Hugging Face's datasets are not installed")


def _rows(images: Any = None) -> dict[str, Any]:
    return {"image": images or [Image.fromarray(pixels) for pixels in COLOURS], "label": LABELS}


@pytest.mark.parametrize("named", [True, False])
def test_hugging_face_data_sets(hugging_face: Any, named: bool) -> None:
    hf = hugging_face
    label = hf.ClassLabel(names=["ant", "bee", "cat"]) if named else hf.Value("int64")
    dataset = hf.Dataset.from_dict(_rows(), features=hf.Features({"image": hf.Image(), "label": label}))
    names = ["ant", "bee", "cat"] if named else ["0", "1", "2"]
    lazy = check(dataset, names)
    check(dataset.select([3, 1, 0]), names, [2, 0, 1])
    check(dataset.cast_column("image", hf.Image(decode=False)), names)  # decoded here, not there
    check(dataset.with_format("torch"), names)
    assert identity_of(images_of(dataset, size=5, lazy=True).images) == identity_of(lazy.images)
    other = dataset.select([0, 1, 2, 3, 5, 4])
    assert identity_of(images_of(other, size=5, lazy=True).images) != identity_of(lazy.images)


def test_labels_of_hugging_face_are_read_without_images(
    hugging_face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = hugging_face
    dataset = hf.Dataset.from_dict(
        _rows(), features=hf.Features({"image": hf.Image(), "label": hf.Value("int32")})
    )
    decoded = []
    decode = hf.Image.decode_example
    monkeypatch.setattr(hf.Image, "decode_example", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    images_of(dataset, size=5, lazy=True)
    assert len(decoded) <= 4  # the first and the last, for their labels and for their pixels


def test_hugging_face_dictionaries_of_splits_are_refused(hugging_face: Any) -> None:
    splits = hugging_face.DatasetDict({"train": hugging_face.Dataset.from_dict({"label": [0]})})
    with pytest.raises(TypeError, match="take one of its splits"):
        images_of(splits)
    unlabelled = hugging_face.Dataset.from_dict({"image": [[[0]]]})
    with pytest.raises(TypeError, match="must have an image"):
        images_of(unlabelled, size=5, lazy=True)
