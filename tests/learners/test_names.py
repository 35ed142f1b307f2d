"""Names of classes: kept by learners and their checkpoints, and answered for files, pictures and arrays."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import (
    METHODS,
    MLP_METHODS,
    Answer,
    checkpoint,
    load_learner,
    make_learner,
    picture_files,
)
from flexkern.streams import Experience, Images, class_incremental
from helpers import tiny_vit
from helpers.children import run_python
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLASSES, QUICK, SIZE, blobs

pytestmark = pytest.mark.usefixtures("one_thread")
image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

OLD = Path(__file__).resolve().parent.parent / "data" / "old_learners"
OF_TASKS = (("cat", "dog"), ("", "cow"), ("ant", "bee"))
NAMES = ["cat", "dog", "2", "cow", "ant", "bee"]


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


@pytest.fixture(scope="module")
def items() -> list[Experience]:
    return [
        dataclasses.replace(e, class_names=n) for e, n in zip(tiny_vit.stream(), OF_TASKS, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def learner(backbone: nn.Module, items: list[Experience]) -> Any:
    one = make_learner("simplecil", backbone)
    for item in items:
        one.learn(item)
    return one


def pixels(x: Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).contiguous().numpy()


@pytest.fixture(scope="module")
def folder(items: list[Experience], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the first task as files, in their order."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "sub").mkdir()
    (path / ".hidden.png").write_bytes(b"x")
    (path / "notes.txt").write_text("no picture")
    for i, x in enumerate(items[0].test_inputs):
        image.fromarray(pixels(x)).save(path / ("sub" if i > 15 else ".") / f"{i:03}.png")
    return path


# ------------------------------------------------------------------ kept


def test_names_are_kept_in_the_learners_numbering(learner: Any, backbone: nn.Module, tmp_path: Path) -> None:
    assert learner.class_names == NAMES
    learner.save(tmp_path / "learner")
    again = load_learner(tmp_path / "learner", backbone=backbone)
    assert again.class_names == NAMES
    assert fingerprint(again) == fingerprint(learner)


def test_names_are_those_of_the_stream(backbone: nn.Module) -> None:
    """The order of learning is not that of the data set."""
    x = torch.cat([e.train_inputs for e in tiny_vit.stream()])
    y = torch.cat([e.train_labels for e in tiny_vit.stream()])
    images = Images(x, y, ["zero", "one", "two", "three", "four", "five"])
    stream = class_incremental(images, images, increment=2)
    one = make_learner("simplecil", backbone)
    for number, item in enumerate(stream):
        one.learn(item)
        assert one.class_names == list(stream.class_names[: 2 * number + 2])
    assert one.class_names != images.names
    named = [of_input[0].name for of_input in one.predict(x, names=True)]
    right = [images.names[c] for c in y.tolist()]
    # What one.predict(x) indexes is the learner's list, not the data set's.
    assert np.mean([a == b for a, b in zip(named, right, strict=True)]) > 0.9
    assert [one.class_names[c] for c in one.predict(x).tolist()] == named


@pytest.mark.parametrize("method", [*METHODS, *(f"mlp {name}" for name in MLP_METHODS)])
def test_names_of_all_methods(
    method: str, backbone: nn.Module, items: list[Experience], tmp_path: Path
) -> None:
    given: dict[str, Any]
    if method.startswith("mlp"):
        stream = [
            dataclasses.replace(e, class_names=n) for e, n in zip(blobs(3, per_class=8), OF_TASKS, strict=True)
        ]  # fmt: skip
        name = method.split()[1]
        one: Any = MLP_METHODS[name]((SIZE,), CLASSES, widths=(6, 5), **QUICK.get(name, {}))
        given, known = {}, ["cat", "dog", "2", "3", "4", "5"]
    else:
        stream, given, known = items, {"backbone": backbone}, ["cat", "dog"]
        options = {"rank": 2} if method in ("artsy", "ease") else {"features": 8} if method == "ranpac" else {}
        one = make_learner(method, backbone, epochs=1, **options)
    one.learn(stream[0], epochs=1)
    assert one.class_names == known
    (tmp_path / "l").unlink(missing_ok=True)
    one.save(tmp_path / "l")
    assert load_learner(tmp_path / "l", **given).class_names == known
    x = stream[0].test_inputs
    for found, label in zip(one.predict(x, top=9), one.predict(x).tolist(), strict=True):
        assert all(isinstance(answer, Answer) for answer in found)
        assert [answer.name for answer in found] == [known[answer.label] for answer in found]
        assert sorted(answer.label for answer in found) == list(range(len(known)))
        assert found[0].label == label
        assert sum(answer.probability for answer in found) == pytest.approx(1)
        assert all(a.probability >= b.probability for a, b in itertools.pairwise(found))


def test_a_name_of_two_classes_is_refused(learner: Any, backbone: nn.Module, items: list[Experience]) -> None:
    one = make_learner("simplecil", backbone)
    one.learn(items[0])
    before = fingerprint(one)
    for names, message in (
        (("cow", "dog"), "classes 1 and 3 would both be named 'dog'"),
        (("cow", "cow"), "classes 2 and 3 would both be named 'cow'"),
        (("cow", "ant", "bee"), "3 class_names, and 2 classes to name"),
        (("cow",), "1 class_names, and 2 classes to name"),
        (("3", ""), "classes 2 and 3 would both be named '3'"),
    ):
        with pytest.raises(ValueError, match=f"^experience: .*{message}"):
            one.learn(dataclasses.replace(items[1], class_names=names))
        assert fingerprint(one) == before
    one.learn(dataclasses.replace(items[1], class_names=()))
    assert one.class_names == ["cat", "dog", "2", "3"]


def test_an_item_that_comes_again_on_a_perceptron() -> None:
    stream = blobs(2, per_class=8)
    one = MLP_METHODS["metaplastic"]((SIZE,), CLASSES, widths=(6, 5))
    one.learn(stream[0], epochs=1)
    assert one.class_names == ["0", "1", "2", "3", "4", "5"]
    for names in (("cat", "dog"), ("cat", "dog"), ()):
        one.learn(dataclasses.replace(stream[0], class_names=names), epochs=1)
        assert one.class_names[:3] == ["cat", "dog", "2"]
    with pytest.raises(ValueError, match="class 0 was learned as 'cat', and is named 'dog' here"):
        one.learn(dataclasses.replace(stream[0], class_names=("dog", "cat")), epochs=1)
    # Labels that are told wrongly say nothing about whose names these are; those of the test are the truth.
    told = dataclasses.replace(stream[1], train_labels=stream[1].train_labels % 3, class_names=("cow", "ant"))
    one.learn(told, epochs=1)
    assert one.class_names == ["cat", "dog", "cow", "ant", "4", "5"]


@pytest.mark.filterwarnings("ignore:.*carries no sum", "ignore:backbone. the checkpoint is of")
@pytest.mark.parametrize("file", ["ewc", "metaplastic"])
def test_an_old_checkpoint_has_numbers_for_names(file: str) -> None:
    one = load_learner(OLD / f"{file}.safetensors")
    assert one.class_names == [str(c) for c in range(6)]
    assert one.temperature == 1
    assert one.decoded_size is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_names", "cat", "progress.class_names must be a list"),
        ("class_names", ["cat", 3], r"progress.class_names.1 must be a string or null, got 3"),
        ("class_names", ["cat"] * 9, "class_names has a name of class 8, and there are 6 classes"),
        ("decoded_size", "16", "progress.decoded_size must be a whole number"),
        ("decoded_size", 0, r"progress.decoded_size must be in \[1,"),
        ("calibration", 3, "progress.calibration must be an object"),
        ("calibration", {"log_temperature": 0.0}, "progress.calibration.images is missing"),
        (
            "calibration",
            {"log_temperature": 1e9, "images": 3},
            "progress.calibration.log_temperature must be in",
        ),
    ],
)
def test_a_record_that_someone_else_wrote(
    field: str, value: Any, message: str, learner: Any, backbone: nn.Module, tmp_path: Path
) -> None:
    learner.save(tmp_path / "learner")
    tensors, record = checkpoint.read(tmp_path / "learner")
    record["progress"][field] = value
    checkpoint.write(tmp_path / "learner", tensors, record)
    with pytest.raises(ValueError, match=message):
        load_learner(tmp_path / "learner", backbone=backbone)


# ------------------------------------------------------------------ pictures


def test_pictures_are_answered_as_their_tensor(learner: Any, items: list[Experience], folder: Path) -> None:
    x = items[0].test_inputs
    expected, names = learner.predict(x), learner.predict(x, names=True)
    assert [of_input[0].label for of_input in names] == expected.tolist()
    arrays = [pixels(one) for one in x]
    files = picture_files(folder)
    assert len(files) == len(x)
    for given in (
        folder, str(folder), [folder], files, tuple(map(Path, files)), arrays, np.stack(arrays),
        np.stack(arrays).astype(np.float32) / 255, [image.fromarray(a) for a in arrays],
        [files[0], image.fromarray(arrays[1]), arrays[2].astype(np.float64) / 255, *files[3:]],
        tiny_vit.Decoded(x),
    ):  # fmt: skip
        assert torch.equal(learner.predict(given), expected)
        assert learner.predict(given, names=True) == names
    for one in (files[3], Path(files[3]), arrays[3], image.fromarray(arrays[3])):
        assert torch.equal(learner.predict(one), expected[3:4])
        assert torch.equal(learner.probabilities(one), learner.probabilities(x[3:4]))
    assert learner.predict([]).shape == (0,)
    assert learner.predict([], names=True) == []


def test_kinds_of_arrays_and_pictures(learner: Any) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = learner.predict(torch.from_numpy(grey).expand(1, 3, 16, 16), top=6)
    clear = np.stack([grey, grey, grey, np.full_like(grey, 255)], 2)
    for given in (grey, grey[..., None], grey / 255, clear, image.fromarray(grey), image.fromarray(clear)):
        assert learner.predict(given, top=6) == expected
    wide = image.new("RGB", (64, 32), "red")  # any size
    assert learner.predict([wide, image.new("CMYK", (16, 16))]).shape == (2,)


def test_files_are_read_at_the_size_of_those_that_were_learned(backbone: nn.Module, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (60, 90, 3)).astype(np.uint8)
    image.fromarray(photo).save(tmp_path / "a.png")
    from flexkern.streams.pictures import decode

    for size, shape, expected in ((24, (24, 24), 24), (16, (16, 16), 16), (18, (24, 20), None)):
        x = torch.from_numpy(rng.integers(0, 256, (8, 3, *shape)).astype(np.uint8))
        y = torch.arange(8) % 2
        one = make_learner("simplecil", backbone)
        one.learn(Experience("a", 0, x, y, x, y))
        assert one.decoded_size == expected
        read = torch.tensor(decode(tmp_path / "a.png", "a", size=size)).permute(2, 0, 1)[None]
        assert torch.equal(one.probabilities(tmp_path / "a.png"), one.probabilities(read))


WRONG: list[tuple[Any, type[Exception], str]] = [
    ("no/such.png", FileNotFoundError, r"^x: there is no file or folder 'no/such\.png'"),
    ("", FileNotFoundError, "^x: there is no file or folder ''"),
    (["{folder}", "no.png"], FileNotFoundError, r"no\.png"),
    ("{folder}/notes.txt", ValueError, r"x: .*notes\.txt': no image, or damaged"),
    ("{empty}", ValueError, "x: the folder '.*' holds no pictures"),
    (3, TypeError, "x must be .* got int"),
    (None, TypeError, "x must be .* got NoneType"),
    ([torch.zeros(3, 16, 16)], TypeError, "x must be .* got list"),
    ([np.zeros((16, 16)), 3], TypeError, r"x must be a list of paths.* x\[1\] is int"),
    ([np.zeros((16, 16)), torch.zeros(3, 16, 16)], TypeError, r"x\[1\] is Tensor"),
    ([np.zeros((16, 16)), np.zeros((2, 16, 16, 3))], TypeError, r"x\[1\] is ndarray of shape \(2, 16, 16, 3\)"),
    (np.zeros((16, 16, 3), np.int64), TypeError, r"x must be uint8, .*got int64; .*astype\(numpy.uint8\)"),
    (np.full((16, 16, 3), 200.0), ValueError, r"x must be in \[0, 1\], or uint8; its values are 200 to 200"),
    ([np.full((16, 16), np.nan)], ValueError, r"x\[0\] must be in \[0, 1\]"),
    (np.zeros((2, 3, 16, 16), np.uint8), TypeError, "got ndarray; torch.from_numpy"),
    (np.zeros((0, 16, 3), np.uint8), ValueError, "x.* no pixels"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_picture(
    given: Any, error: type[Exception], message: str, learner: Any, folder: Path, tmp_path: Path
) -> None:
    def placed(one: Any) -> Any:
        return one.format(folder=folder, empty=tmp_path) if isinstance(one, str) else one

    given = [placed(one) for one in given] if isinstance(given, list) else placed(given)
    for ask in (learner.predict, learner.probabilities):
        with pytest.raises(error, match=message):
            ask(given)


def test_names_and_top_are_checked(learner: Any, items: list[Experience]) -> None:
    x = items[0].test_inputs[:2]
    assert [len(found) for found in learner.predict(x, top=3)] == [3, 3]
    assert learner.predict(x, top=1) == learner.predict(x, names=True)
    assert learner.predict(x, names=False, top=2) == learner.predict(x, top=np.int64(2))
    for options, error, message in (
        ({"top": 0}, ValueError, "top must be at least 1"),
        ({"top": 1.5}, TypeError, "top must be a whole number"),
        ({"names": "yes"}, TypeError, "names must be True or False"),
        ({"task": torch.zeros(3, dtype=torch.int64)}, ValueError, "task must be"),
    ):
        with pytest.raises(error, match=message):
            learner.predict(x, **options)


def test_pictures_that_are_not_read_are_said(learner: Any, folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.heic"):
        (tmp_path / name).write_bytes((folder / "000.png").read_bytes())
    with pytest.warns(UserWarning, match=r"x: a file is left out, as it cannot be read: .*b\.heic"):
        assert len(learner.predict(tmp_path)) == 1


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16), (16, 16)])
def test_a_perceptron_reads_files_where_its_inputs_are_images(
    shape: tuple[int, ...], folder: Path, items: list[Experience]
) -> None:
    item = items[0]

    def inputs(x: Tensor) -> Tensor:
        if len(shape) == 3 and shape[0] == 3:
            return x
        grey = [np.asarray(image.fromarray(pixels(one)).convert("L")) for one in x]
        return torch.from_numpy(np.stack(grey)).view(-1, *shape)

    x = inputs(item.train_inputs)
    item = dataclasses.replace(item, train_inputs=x, test_inputs=inputs(item.test_inputs))
    one = MLP_METHODS["metaplastic"](shape, 2, widths=(6, 5), lr=1e-4)
    one.learn(item)
    close = one.probabilities(folder) - one.probabilities(item.test_inputs)
    # To the bit in colour; Pillow rounds brightness by another table, by one level of 255 at most.
    assert float(close.abs().max()) <= (0 if shape[0] == 3 else 0.1)
    assert [a[0].name for a in one.predict(folder, names=True)] == [
        item.class_names[c] for c in one.predict(item.test_inputs).tolist()
    ]
    floats = dataclasses.replace(item, train_inputs=item.train_inputs / 255, test_inputs=item.test_inputs / 255)
    one = MLP_METHODS["metaplastic"](shape, 2, widths=(6, 5))
    one.learn(floats, epochs=1)
    with pytest.raises(TypeError, match=r"x must be a tensor: MetaplasticMLP learned floating-point inputs"):
        one.predict(folder)


def test_a_perceptron_of_other_inputs_reads_no_files(folder: Path) -> None:
    one = MLP_METHODS["ewc"]((SIZE,), CLASSES, widths=(6, 5))
    for given in (folder, [folder], [], np.zeros((4, SIZE), np.float32)):
        with pytest.raises(TypeError, match=r"x must be a tensor \[n, 20\]"):
            one.predict(given)
    x = blobs(1)[0].test_inputs
    with pytest.raises(TypeError, match="task: EWC asks for no tasks"):
        one.predict(x, task=torch.zeros(len(x), dtype=torch.int64))


def test_another_process_names_them_as_well(items: list[Experience], folder: Path, tmp_path: Path) -> None:
    one = MLP_METHODS["metaplastic"]((3, 16, 16), 6, widths=(6, 5), lr=1e-4)
    for item in items:
        one.learn(item, epochs=1)
    one.save(tmp_path / "learner")
    child = run_python(
        "import json, sys\n"
        "from flexkern.learners import load_learner\n"
        "print(json.dumps(load_learner(sys.argv[1]).predict(sys.argv[2], top=2)))\n",
        str(tmp_path / "learner"), str(folder),
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == json.loads(json.dumps(one.predict(folder, top=2)))


@pytest.mark.slow
def test_another_process_with_a_transformer(learner: Any, folder: Path, tmp_path: Path) -> None:
    learner.save(tmp_path / "learner")
    learner.backbone.save_pretrained(tmp_path / "backbone")
    child = run_python(
        "import json, sys\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from flexkern.learners import load_learner\n"
        "learner = load_learner(sys.argv[1], backbone=sys.argv[2])\n"
        "print(json.dumps(learner.predict(sys.argv[3], top=2)))\n",
        str(tmp_path / "learner"), str(tmp_path / "backbone"), str(folder),
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    expected = json.loads(json.dumps(learner.predict(folder, top=2)))
    assert json.loads(child.stdout.splitlines()[-1]) == expected
