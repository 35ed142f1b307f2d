"""Looks of pictures, digits in several hands, and the folders of DomainNet and CORe50."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.streams import (
    Images,
    ImageSource,
    core50,
    corrupted,
    corrupted_domains,
    digit_domains,
    domain_incremental,
    domainnet,
)
from flexkern.streams.image_source import identity_of
from flexkern.streams.looks import KINDS, WITHOUT_SEVERITY

PIL = pytest.importorskip("PIL.Image")
LOOKS = [f"{kind}:3" if kind not in WITHOUT_SEVERITY else kind for kind in KINDS]


def pictures(count: int = 6, side: int = 32, seed: int = 0) -> Images:
    """Smooth colours with an edge."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    x = np.stack([
        np.stack([rows * rng.random() + columns * rng.random() * (i % 3 + 1) / 3 for _ in range(3)])
        for i in range(count)
    ])  # fmt: skip
    x[:, :, : side // 3] *= 0.4
    pixels = torch.from_numpy((np.clip(x, 0, 1) * 255).astype(np.uint8))
    return Images(pixels, torch.arange(count) % 2, ["a", "b"])


@pytest.mark.parametrize("look", LOOKS)
def test_each_look_changes_pictures_and_is_the_same_each_time(look: str) -> None:
    images = pictures()
    one, same, other = (corrupted(images, look, seed=s).images for s in (1, 1, 2))
    assert one.dtype == torch.uint8
    assert one.shape == images.images.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, images.images)
    of_chance = "noise" in look or look in ("fog:3", "elastic:3", "coloured")
    assert torch.equal(one, other) != of_chance
    lazy = corrupted(images, look, seed=1, lazy=True).images
    assert isinstance(lazy, ImageSource)
    assert torch.equal(lazy.tensor(), one)
    assert torch.equal(lazy[[4, 2]].tensor(), one[[4, 2]])  # an image is changed alike wherever it stands
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).tensor(), one)
    assert torch.equal(corrupted(images._replace(images=lazy), "clean").images.tensor(), one)
    assert identity_of(lazy) != identity_of(corrupted(images, look, seed=2, lazy=True).images)
    # Other sizes than 32, and pictures that are all black or all white.
    for side, value in ((1, 7), (9, 0), (9, 255), (224, 128)):
        flat = Images(torch.full((1, 3, side, side), value, dtype=torch.uint8), torch.zeros(1).long(), ["a"])
        assert corrupted(flat, look).images.shape == (1, 3, side, side)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (*WITHOUT_SEVERITY, "saturate", "pixelate")])
def test_more_severe_is_further_from_the_picture(kind: str) -> None:
    images = pictures()
    away = [
        (corrupted(images, f"{kind}:{s}").images.float() - images.images.float()).abs().mean().item()
        for s in range(1, 6)
    ]
    assert away[0] < away[2] < away[4]


# Of looks that take sums and products only, of this NumPy's random numbers.
BYTES = {
    "gaussian_blur:3": "dc2941be952b9ae4",
    "contrast:2": "45dcc1cacc3cdaa2",
    "rotated:2": "8b27abb22aba0ae7",
    "inverted": "2f3c764fdae3c89a",
    "coloured": "923cd8cf6196d214",
    "fog:4": "d2bcc939b4b84c91",
}


@pytest.mark.parametrize("look", BYTES)
def test_the_bytes_of_looks_stay(look: str) -> None:
    made = corrupted(pictures(2, 16), look).images.numpy().tobytes()
    assert hashlib.blake2b(made, digest_size=8).hexdigest() == BYTES[look]


def test_what_looks_mean() -> None:
    images = pictures()
    assert torch.equal(corrupted(images, "inverted").images, 255 - images.images)
    assert corrupted(images, "clean").images is images.images
    grey = images.images.float().mean((2, 3))
    assert torch.allclose(corrupted(images, "contrast:4").images.float().mean((2, 3)), grey, atol=1)
    bright = corrupted(images, "brightness:2").images.amax(1).float() - images.images.amax(1).float()
    room = (255 - images.images.amax(1).float()).clamp(max=25.5)
    assert torch.allclose(bright, room, atol=1)
    less = corrupted(images, "saturate:2").images.float()
    assert (less.amax(1) - less.amin(1)).mean() < 0.2 * (
        images.images.amax(1) - images.images.amin(1)
    ).float().mean()
    quarter = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    quarter[..., 4, 8] = 255  # in the middle of the right side
    turned = corrupted(Images(quarter, torch.zeros(1).long(), ["a"]), "rotated:5").images[0, 0]
    assert turned[:3].sum() > 0.9 * turned.sum()  # 75 degrees to the left: it is up now


@pytest.mark.parametrize(
    ("look", "error", "message"),
    [
        ("fogg:3", ValueError, "look: there is no look 'fogg'; did you mean 'fog'.; there are clean, gaussian"),
        ("fog", ValueError, "look: 'fog' needs a severity from 1 to 5, as 'fog:3', got 'fog'"),
        ("fog:6", ValueError, "severity from 1 to 5"),
        ("fog:", ValueError, "severity from 1 to 5"),
        ("inverted:1", ValueError, "look: 'inverted' has no severity"),
        ("clean:1", ValueError, "look: 'clean' has no severity"),
        (3, TypeError, "look must be a look such as 'fog:3', got 3"),
    ],
)
def test_looks_that_there_are_not(look: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        corrupted(pictures(), look)


def test_images_that_cannot_look_otherwise() -> None:
    wide = Images(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), torch.zeros(1).long(), ["a"])
    with pytest.raises(ValueError, match="images must be as high as wide, got 2 x 4"):
        corrupted(wide, "inverted")
    with pytest.raises(ValueError, match=r"images must be uint8 \[n, 3, height, width\], got torch.float32"):
        corrupted(wide._replace(images=torch.zeros(1, 3, 4, 4)), "inverted")


def test_a_stream_of_looks() -> None:
    train, test = pictures(20), pictures(8, seed=1)
    stream = domain_incremental(corrupted_domains(train, test, ["clean", "fog:3", "gaussian_noise:5"]))
    assert stream.names == ["clean", "fog:3", "gaussian_noise:5"]
    assert stream.class_names == ["a", "b"]
    assert torch.equal(stream[0].train_inputs.sum(), train.images.sum())
    with pytest.raises(ValueError, match=r"looks\[1\]: 'clean' is there twice"):
        corrupted_domains(train, test, ["clean", "clean"])
    with pytest.raises(TypeError, match="looks must be a list of texts"):
        corrupted_domains(train, test, "clean")


# ---------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def mnist_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    y = (np.arange(40) % 10).astype(np.uint8)
    np.savez(path, x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    return path


def test_digits_in_several_hands(mnist_path: Path) -> None:
    pytest.importorskip("sklearn")
    names = ["digits", "digits:inverted", "mnist", "mnist:rotated:2"]
    domains = digit_domains(names, mnist_path=mnist_path, lazy=True)
    assert list(domains) == names
    domains = {
        name: tuple(part._replace(images=part.images[:200].tensor(), labels=part.labels[:200]) for part in both)
        for name, both in domains.items()
    }
    for train, test in domains.values():
        assert train.images.shape[1:] == test.images.shape[1:] == (3, 32, 32)
        assert train.images.dtype == torch.uint8
        assert train.names == [str(c) for c in range(10)]
    train, test = domains["digits"]
    assert (train.images.amin().item(), train.images.amax().item()) == (0, 255)
    assert torch.equal(domains["digits:inverted"][0].images, 255 - train.images)
    with np.load(mnist_path) as archive:
        assert torch.equal(domains["mnist"][0].images[:, 1, 2:30, 2:30], torch.from_numpy(archive["x_train"]))
    assert domains["mnist"][0].images[..., :2].max() == 0
    stream = domain_incremental(domains, train_per_class=3, test_per_class=1)  # type: ignore[arg-type]
    assert [len(e.train_labels) for e in stream] == [30] * 4
    lazy = digit_domains(["digits:inverted"], lazy=True)["digits:inverted"][1].images
    assert isinstance(lazy, ImageSource)
    assert torch.equal(lazy[3], 255 - test.images[3])


def test_digits_are_enlarged_without_rounding_in_between() -> None:
    pytest.importorskip("sklearn")
    from flexkern.streams import bundled_digits

    train = digit_domains(["digits"])["digits"][0]
    means = train.images[:, 0].float().mean((1, 2)).sort().values
    every = bundled_digits().images.float().mean((1, 2)).sort().values
    assert abs(float(means.mean() - every.mean())) < 1


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["mnist"], ValueError, "mnist_path: a domain of MNIST needs the path"),
        (["digit"], ValueError, r"names\[0\] must begin with one of digits, mnist"),
        (["digits:upside"], ValueError, r"names\[0\]: there is no look 'upside'"),
        (["digits", "digits"], ValueError, r"names\[1\]: 'digits' is there twice"),
        ([], ValueError, "names must name at least one"),
        ("digits", TypeError, "names must be a list"),
        ([3], TypeError, r"names\[0\] must be a text, got 3"),
    ],
)
def test_digits_that_there_are_not(names: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        digit_domains(names)


# ---------------------------------------------------------------------- published folders


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.new("RGB", (8, 6), (value, 0, 0)).save(path)


@pytest.fixture
def domainnet_folder(tmp_path: Path) -> Path:
    for d, domain in enumerate(("clipart", "real")):
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for c, name in enumerate(("aircraft_carrier", "bus", "The_Eiffel_Tower")):
            for i in range(4):
                file = f"{domain}/{name}/{domain}_{c:03}_{i:06}.png"
                save(tmp_path / file, 100 * d + 10 * c + i)
                lists["test" if i == 3 else "train"].append(f"{file} {c}")
        for part, lines in lists.items():
            (tmp_path / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("lazy", [False, True])
def test_domainnet(domainnet_folder: Path, lazy: bool) -> None:
    domains = domainnet(domainnet_folder, size=4, domains=["clipart", "real"], lazy=lazy, workers=0)
    train, test = domains["real"]
    assert isinstance(train.images, ImageSource) == lazy
    assert train.names == ["aircraft_carrier", "bus", "The_Eiffel_Tower"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [0, 1, 2]
    stream = domain_incremental(domains)
    assert stream.names == ["clipart", "real"]
    test_images = stream[1].test_inputs.tensor() if lazy else stream[1].test_inputs
    assert test_images[:, 0, 0, 0].tolist() == [103, 113, 123]


def test_what_domainnet_lacks_is_named(domainnet_folder: Path) -> None:
    def read(*domains: str, lazy: bool = True) -> Any:
        return domainnet(domainnet_folder, size=4, domains=domains, lazy=lazy, workers=0)

    with pytest.raises(
        FileNotFoundError, match=r"must hold 'sketch': DomainNet has a folder, .* there are 'clip"
    ):
        read("clipart", "sketch")
    with pytest.raises(ValueError, match=r"domains\[0\] must be the name of a folder, got '../x'"):
        read("../x")
    with pytest.raises(TypeError, match="domains must be a list of names"):
        domainnet(domainnet_folder, size=4, domains="clipart")
    with pytest.raises(FileNotFoundError, match="path: no folder at"):
        domainnet(domainnet_folder / "no", size=4)
    table = domainnet_folder / "real_test.txt"
    good = table.read_text()
    for line, message in (
        ("real/bus/x.png", "line 4: must be a file in its folders and a label"),
        ("real/bus/x.png one", "line 4: must be a file"),
        ("x.png 1", "line 4: must be a file"),
        ("real/car/x.png 1", "line 4: label 1 is of 'car' here and of 'bus' elsewhere"),
        ("../bus/x.png 1", r"line 4: '../bus/x.png' is outside of the folder"),
        ("/bus/x.png 1", "line 4: '/bus/x.png' is outside"),
    ):
        table.write_text(good + line + "\n")
        with pytest.raises(ValueError, match=rf"real_test.txt', {message}"):
            read("real")
    table.write_text(good + "real/bus/gone.png 1\n")
    for lazy in (True, False):
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            read("real", lazy=lazy)
    table.write_text("\n")
    with pytest.raises(ValueError, match=r"real_test.txt' lists no images"):
        read("real")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold 'real_test\.txt'"):
        read("real")


@pytest.fixture(scope="module")
def core50_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("core50")
    for session in (1, 2, 3, 7, 10):
        for number in range(1, 51):
            save(root / f"s{session}" / f"o{number}" / f"C_{session:02}_{number:02}_000.png", session)
    return root


def test_core50(core50_folder: Path) -> None:
    domains = core50(core50_folder, size=4, sessions=["s2", "s1"], lazy=True)
    assert list(domains) == ["s2", "s1"]
    train, test = domains["s2"]
    assert train.names[:2] == ["plug adapter", "mobile phone"]
    assert train.labels.tolist() == [o // 5 for o in range(50)]
    assert len(test.labels) == 150
    assert test.images is domains["s1"][1].images
    stream = domain_incremental(domains)
    assert (stream.classes, stream.names) == (10, ["s2", "s1"])
    assert stream[1].train_inputs[7][0, 0, 0] == 1
    of_objects = core50(core50_folder, size=4, sessions=["s1"], objects=True, lazy=True)["s1"][0]
    assert of_objects.names[48:] == ["remote control 4", "remote control 5"]
    assert of_objects.labels.tolist() == list(range(50))


def test_what_core50_lacks_is_named(core50_folder: Path) -> None:
    with pytest.raises(ValueError, match="sessions: 's3' is for tests, as s3, s7, s10 are"):
        core50(core50_folder, size=4, sessions=["s1", "s3"])
    with pytest.raises(FileNotFoundError, match=r"must hold a folder 's4'.*; CORe50 has s1 to s11"):
        core50(core50_folder, size=4)
    last = core50_folder / "s2" / "o50"
    last.rename(core50_folder / "kept")
    try:
        with pytest.raises(FileNotFoundError, match=r"no folder '.*o50'; each session has o1 to o50"):
            core50(core50_folder, size=4, sessions=["s2"], lazy=True)
        last.mkdir()
        with pytest.raises(ValueError, match=r"o50' holds no images"):
            core50(core50_folder, size=4, sessions=["s2"], lazy=True)
        last.rmdir()
    finally:
        (core50_folder / "kept").rename(last)
