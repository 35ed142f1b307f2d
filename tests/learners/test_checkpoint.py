"""A checkpoint's tensors are the learner's own, and whatever was damaged in a file is found."""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flexkern.features import RandomConvolutions
from flexkern.learners import METHODS, MetaplasticMLP, checkpoint, load_learner, load_mlp
from helpers import tiny_vit
from helpers.children import run_python
from helpers.mlp_blobs import blobs, make

STREAM = blobs(2, per_class=8)
OLD = Path(__file__).resolve().parent.parent / "data" / "old_learners"
FLIPS = 1000


def learned(**options: Any) -> Any:
    learner = make(MetaplasticMLP, **{"widths": (6, 5), "gate": "step", "scale": 30.0, **options})
    learner.learn(STREAM[0], epochs=1)
    return learner


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


@pytest.fixture(scope="module")
def artsy(backbone: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner = METHODS["artsy"].make(
        copy.deepcopy(backbone), epochs=1, rank=2, gate={"gate": "ridge", "features": 8}
    )
    learner.learn(tiny_vit.stream()[0])
    path = tmp_path_factory.mktemp("artsy") / "learner"
    learner.save(path)
    return path


def state(learner: Any) -> dict[str, Tensor]:
    optimizer, _ = checkpoint.split_optimizer(learner.optimizer.state_dict())
    return {name: t.clone() for name, t in (learner.model.state_dict() | optimizer).items()}


# ------------------------------------------------------------------ what was read is the learner's own


@pytest.mark.parametrize("gate", ["item", "step"])
def test_a_file_that_is_written_over_does_not_reach_the_learner(gate: str, tmp_path: Path) -> None:
    learned(gate=gate).save(tmp_path / "one")
    learned(gate=gate, seed=4).save(tmp_path / "other")
    loaded = load_learner(tmp_path / "one")
    before = state(loaded)
    content = (tmp_path / "other").read_bytes()
    assert len(content) == (tmp_path / "one").stat().st_size
    with (tmp_path / "one").open("r+b") as file:  # as cp does
        file.write(content)
    for name, value in state(loaded).items():
        assert torch.equal(value, before[name]), name


def test_a_file_that_is_cut_does_not_end_the_process(tmp_path: Path) -> None:
    learned().save(tmp_path / "one")
    child = run_python(
        "import os, sys\n"
        "from flexkern.learners import load_learner\n"
        "one = load_learner(sys.argv[1])\n"
        "maps = '/proc/self/maps'\n"
        "assert not os.path.exists(maps) or sys.argv[1] not in open(maps).read()\n"
        "os.truncate(sys.argv[1], 0)\n"
        "one.save(sys.argv[1] + '_again')\n",
        str(tmp_path / "one"),
    )
    assert child.returncode == 0, child.stderr
    found, expected = (checkpoint.read(tmp_path / "one_again"), learned())
    assert all(torch.equal(found[0][f"model.{k}"], v) for k, v in expected.model.state_dict().items())


# ------------------------------------------------------------------ the format


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.tensor(3), "\u00e9": torch.ones(0),
        "m": torch.tensor([True, False]), "t": torch.randn(3, 4).t(), "d": torch.randn(2).double(),
    }  # fmt: skip
    checkpoint.write(tmp_path / "one", tensors, {"text": '\u00e9"', "number": 1.5e-7})
    read, record = checkpoint.read(tmp_path / "one")
    assert record == {"text": '\u00e9"', "number": 1.5e-7} == checkpoint.read_record(tmp_path / "one")
    for found in (read, load_file(tmp_path / "one")):
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype is value.dtype
            assert torch.equal(found[name], value), name


def test_the_same_learner_is_saved_to_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        learned(silent_fraction=0.3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_not_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"spectrum is a tensor of torch\.complex64, which is not saved"):
        checkpoint.write(tmp_path / "one", {"spectrum": torch.ones(2, dtype=torch.complex64)}, {})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ damage


def refused_flips(path: Path, load: Callable[[Path], Any], count: int, tmp_path: Path) -> None:
    content, place = path.read_bytes(), tmp_path / "damaged"
    bits = np.random.default_rng(0).choice(8 * len(content), min(count, 8 * len(content)), replace=False)
    header = np.random.default_rng(1).choice(8 * (8 + int.from_bytes(content[:8], "little")), count // 4)
    for bit in (*bits.tolist(), *header.tolist()):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        place.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(str(place))):
            load(place)


@pytest.mark.slow
def test_no_single_bit_of_an_mlp_can_change(tmp_path: Path) -> None:
    learned(silent_fraction=0.3, momentum=0.5).save(tmp_path / "one")
    refused_flips(tmp_path / "one", load_learner, FLIPS, tmp_path)


@pytest.mark.slow
def test_no_single_bit_of_an_artsy_can_change(artsy: Path, backbone: nn.Module, tmp_path: Path) -> None:
    refused_flips(artsy, lambda path: load_learner(path, backbone=backbone), FLIPS, tmp_path)


def test_what_was_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one"
    learned().save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    last = max(load_file(path).items(), key=lambda item: (-item[1].element_size(), item[0]))[0]
    with pytest.raises(ValueError, match=rf"one' is damaged: {last} has another sum than when it was written"):
        load_learner(path)
    changed = content.replace(rb"\"epochs_done\": 0", rb"\"epochs_done\": 1")
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"one' is damaged: its record has another sum"):
        load_learner(path)
    with pytest.raises(ValueError, match=r"one' is damaged: its record has another sum"):
        MetaplasticMLP.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no header"),
        (b"\0" * 8, "it has no header"),
        (b"\xff" * 64, "it has no header"),
        ((10**9).to_bytes(8, "little") + b"{}", "it has no header"),
        ((2).to_bytes(8, "little") + b"{}", "was not written by flexkern"),
        ((2).to_bytes(8, "little") + b"[]", "its header is no JSON object"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "its header is not JSON"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "its header nests too deep"),
        ((12).to_bytes(8, "little") + b'{"a":{"b":1}'[:12], "its header is not JSON"),
        ((13).to_bytes(8, "little") + b'{"a":{"b":1}}', "does not say where 'a' is"),
        ((15).to_bytes(8, "little") + b'{"a":{},"a":{}}', "'a' stands there twice"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    for read in (checkpoint.read, checkpoint.read_record, load_learner, load_mlp, MetaplasticMLP.load):
        with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
            read(path)
        assert message in str(refused.value)


def test_a_header_that_promises_more_than_there_is_reads_nothing(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / "big").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"big' is damaged: it has \d+ bytes, and its header says 4,398,"):
        load_learner(tmp_path / "big")


def test_what_is_no_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        load_learner(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_learner(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        load_learner(tmp_path / "pipe")
    (tmp_path / "locked").write_bytes(b"x")
    (tmp_path / "locked").chmod(0)
    if not os.access(tmp_path / "locked", os.R_OK):  # root reads everything
        with pytest.raises(PermissionError, match="locked"):
            load_learner(tmp_path / "locked")


# ------------------------------------------------------------------ files without a sum


def test_an_old_file_is_loaded_with_a_warning() -> None:
    with pytest.warns(
        UserWarning, match=r"ewc.safetensors' carries no sum, .*: an earlier version wrote it"
    ) as seen:
        load_mlp(OLD / "ewc.safetensors")
    assert len(seen) == 1


def test_a_new_file_is_loaded_without_one(tmp_path: Path) -> None:
    learned().save(tmp_path / "one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_learner(tmp_path / "one")


def test_a_new_file_does_not_lose_its_sum(tmp_path: Path) -> None:
    path = tmp_path / "one"
    learned().save(path)
    content = path.read_bytes().replace(b'"flexkern.sums"', b'"flexkern.sumt"')
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"its metadata has 'flexkern\.sumt'"):
        load_learner(path)
    learned().save(path)
    save_file(load_file(path), path, {"flexkern": json.dumps(checkpoint.read_record(path))})
    with pytest.raises(ValueError, match="it carries no sum, and files of format 2 have one"):
        load_learner(path)


# ------------------------------------------------------------------ frozen networks, whole


def test_a_backbone_that_differs_anywhere_is_refused(artsy: Path, backbone: nn.Module) -> None:
    load_learner(artsy, backbone=copy.deepcopy(backbone))
    for name, value in backbone.state_dict().items():
        other = copy.deepcopy(backbone)
        last = other.state_dict()[name].view(-1)
        last[-1] = -last[-1] if last.is_floating_point() and last[-1] != 0 else last[-1] + 1
        with pytest.raises(ValueError, match="backbone: not the one that this learner was made with"):
            load_learner(artsy, backbone=other)
        assert value.numel(), name
    in_half = copy.deepcopy(backbone).bfloat16()
    with pytest.raises(ValueError, match="backbone: not the one"):
        load_learner(artsy, backbone=in_half)


def test_what_no_tensor_shows_of_a_backbone_counts(artsy: Path, backbone: nn.Module) -> None:
    other = copy.deepcopy(backbone)
    norm = next(m for m in other.modules() if isinstance(m, nn.LayerNorm))
    norm.eps = 1e-3
    with pytest.raises(ValueError, match="backbone: not the one"):
        load_learner(artsy, backbone=other)


def test_an_extractor_that_differs_anywhere_is_refused(tmp_path: Path) -> None:
    extractor = RandomConvolutions(3, kernel=3, grid=4, seed=1)
    learner = MetaplasticMLP((8, 8), 3, widths=(4, 4), features=extractor)
    learner.save(tmp_path / "one")
    for name in extractor.state_dict():
        other = copy.deepcopy(extractor)
        other.state_dict()[name].view(-1)[-1] += 1
        with pytest.raises(ValueError, match="features: not the extractor"):
            load_learner(tmp_path / "one", features=other)
    with pytest.raises(ValueError, match="features: not the extractor"):
        load_learner(tmp_path / "one", features=nn.Flatten())


def test_an_old_backbone_was_compared_in_part_which_a_warning_says() -> None:
    from learners.test_old_checkpoints import backbone as old_backbone

    with pytest.warns(UserWarning, match="the first 256 values of each tensor only"):
        load_learner(OLD / "simplecil.safetensors", backbone=old_backbone())


def test_a_type_that_a_flip_made_of_another_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "one"
    checkpoint.write(path, {"a": torch.zeros(3, dtype=torch.uint8)}, {"format": 2})
    path.write_bytes(path.read_bytes().replace(b'"dtype":"U8"', b'"dtype":"F8_E4M3"', 1))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + 5).to_bytes(8, "little") + content[8:])
    with pytest.raises(ValueError, match="is damaged: a has another sum"):
        checkpoint.read(path)
