"""Features that are kept in a folder: computed once, whole or not there, and mapped into memory."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flexkern.files
from flexkern.features import FeatureCache, extract, extract_from, fingerprint, identity
from helpers.made_images import Flat, Made, made_stream

SOURCE = Made(60)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_computed(module: Flat, inputs: Any, folder: Path | FeatureCache, **options: Any) -> bool:
    """Whether features are computed, and not found; they must be right in either case."""
    expected = extract_from(module, inputs, **options)
    module.batches.clear()
    found = extract_from(module, inputs, cache=folder, **options)
    assert torch.equal(found, expected)
    return sum(module.batches) >= len(inputs)


# ------------------------------------------------------------------ computed once


@pytest.mark.parametrize("inputs", [SOURCE, SOURCE.tensor(), SOURCE.tensor().float()], ids=str)
def test_features_are_computed_once(tmp_path: Path, inputs: Any) -> None:
    assert is_computed(Flat(), inputs, tmp_path)
    assert not is_computed(Flat(), inputs, tmp_path)
    assert not is_computed(Flat(), copy.deepcopy(inputs), tmp_path)
    assert len(names(tmp_path)) == 1


class _Shift(Flat):
    """With something that is in no state_dict."""

    def __init__(self, buffer: float = 0.0, said: float = 0.0, hidden: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(buffer), persistent=False)
        self.said, self.hidden = said, hidden

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.get_buffer("shift") + self.said + self.hidden

    def extra_repr(self) -> str:
        return f"{self.said}"


@pytest.mark.parametrize(
    ("module", "inputs", "options"),
    [
        (Flat(seed=1), SOURCE, {}),
        (Flat(width=9), SOURCE, {}),
        (Flat(), Made(60, seed=1), {}),
        (Flat(), SOURCE[::-1], {}),
        (Flat(), SOURCE[:59], {}),
        (Flat(), SOURCE.tensor(), {}),
        (Flat(), SOURCE, {"dtype": torch.bfloat16}),
        (_Shift(), SOURCE, {}),
    ],
)
def test_anything_else_is_computed_anew(tmp_path: Path, module: Flat, inputs: Any, options: Any) -> None:
    extract_from(Flat(), SOURCE, cache=tmp_path)
    assert is_computed(module, inputs, tmp_path, **options)
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("change", [{"buffer": 0.5}, {"said": 0.5}, {"hidden": 0.5}], ids=str)
def test_what_no_state_dict_has_counts(tmp_path: Path, change: dict[str, float]) -> None:
    extract_from(_Shift(), SOURCE, cache=tmp_path)
    assert is_computed(_Shift(**change), SOURCE, tmp_path)


def test_weights_are_summed_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summed, module, cache = [], Flat(), FeatureCache(tmp_path)
    monkeypatch.setattr(identity, "fingerprint", lambda of: summed.append(of) or fingerprint(of))
    for _ in range(3):
        extract_from(module, SOURCE, cache=cache)
    assert summed == [module]
    extract_from(module, SOURCE, cache=tmp_path)  # another object
    extract_from(module, SOURCE, cache=copy.deepcopy(cache))
    assert summed == [module] * 3
    module.get_buffer("weight")[0, 0] += 1
    assert is_computed(module, SOURCE, cache)
    module.weight = module.get_buffer("weight") * 2
    assert is_computed(module, SOURCE, cache)
    module.get_buffer("weight").data.mul_(3)  # which torch does not count: the first input shows it
    assert is_computed(module, SOURCE, cache)
    with torch.inference_mode():
        module.weight = torch.ones(10, 108)
        assert is_computed(module, SOURCE, cache)
        assert not is_computed(module, SOURCE, cache)


def test_layers_without_tensors_count(tmp_path: Path) -> None:
    x = torch.randn(30, 5)
    for activation in (nn.ReLU(), nn.GELU()):
        found = extract_from(nn.Sequential(activation), x, cache=tmp_path)
        assert torch.equal(found, activation(x))


def test_one_changed_value_of_a_tensor_counts(tmp_path: Path) -> None:
    images = SOURCE.tensor()
    assert is_computed(Flat(), images, tmp_path)
    images[59, 2, 5, 5] += 1
    assert is_computed(Flat(), images, tmp_path)


def test_a_stream_has_a_file_for_each_part(tmp_path: Path) -> None:
    stream, cache = made_stream(), FeatureCache(tmp_path)
    found, expected = extract(stream, Flat(), cache=cache), extract(stream, Flat())
    for e, of in zip(found, expected, strict=True):
        assert torch.equal(e.train_inputs, of.train_inputs)
        assert torch.equal(e.test_inputs, of.test_inputs)
    assert {f.name for f in cache.files()} == {
        f"item {i}, {part}" for i in (0, 1) for part in ("train", "test")
    }
    assert {f.shape for f in cache.files()} == {(90, 10), (30, 10)}


# ------------------------------------------------------------------ whole or not there


class _Stops(Flat):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        if len(self.batches) == self.after:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_was_interrupted_is_not_there(tmp_path: Path, after: int) -> None:
    module = _Stops(after)
    with pytest.raises(KeyboardInterrupt):
        extract_from(module, SOURCE, batch_size=16, cache=tmp_path)
    assert names(tmp_path) == []
    module.after = -1
    assert is_computed(module, SOURCE, tmp_path)


def test_what_a_killed_process_left_is_removed_and_what_is_written_is_not(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".features_{c * 32}.safetensors.{'0' * 16}.tmp" for c in "ab")
    for path in (dead, alive, tmp_path / ".other.0000000000000000.tmp"):
        path.write_bytes(b"begun")
    with alive.open("rb+") as file:
        if not flexkern.files._lock(file.fileno(), wait=False):
            pytest.skip("there are no locks here")
        extract_from(Flat(), SOURCE, cache=tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert (tmp_path / ".other.0000000000000000.tmp").exists()


def _flip(content: bytearray) -> None:
    content[-100] ^= 1


def _in_sum(content: bytearray) -> None:
    content[-1] ^= 1


def _in_name(content: bytearray) -> None:
    content[content.index(b"mine")] ^= 1


def _shorter(content: bytearray) -> None:
    del content[-7:]


def _longer(content: bytearray) -> None:
    content += b"more"


def _of_another_key(content: bytearray) -> None:
    at = re.search(rb'key\\": \\"', bytes(content)).end()  # type: ignore[union-attr]
    content[at : at + 4] = b"0000"


def _no_header(content: bytearray) -> None:
    content[:8] = b"\xff" * 8


def _no_json(content: bytearray) -> None:
    content[8:9] = b"x"


def _empty(content: bytearray) -> None:
    content.clear()


@pytest.mark.parametrize(
    "damage",
    [_flip, _in_sum, _in_name, _shorter, _longer, _of_another_key, _no_header, _no_json, _empty],
)
def test_damage_is_said_and_mended(tmp_path: Path, damage: Callable[[bytearray], None]) -> None:
    expected = extract_from(Flat(), SOURCE, cache=tmp_path, name="mine").clone()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    damage(content)
    path.unlink()  # who has it open keeps it
    path.write_bytes(content)
    module = Flat()
    with pytest.warns(UserWarning, match=rf"cache: '{path}' is damaged \(.*\); its features are computed anew"):
        assert torch.equal(extract_from(module, SOURCE, cache=tmp_path, name="mine"), expected)
    assert sum(module.batches) == len(SOURCE)
    assert not is_computed(Flat(), SOURCE, tmp_path)


@pytest.mark.parametrize("shape", [[-60, -10], [60], ["60", 10], [6, 10]])
def test_a_shape_that_a_file_cannot_have(tmp_path: Path, shape: list[Any]) -> None:
    expected = extract_from(Flat(), SOURCE, cache=tmp_path).clone()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    text = content[8:].replace(b'"shape": [60, 10]', b'"shape": ' + json.dumps(shape).encode(), 1)
    path.unlink()
    path.write_bytes(content[:8] + text)
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(extract_from(Flat(), SOURCE, cache=tmp_path), expected)


def test_threads_at_once(tmp_path: Path) -> None:
    together, found = threading.Barrier(3), {}

    class Waits(Flat):
        def forward(self, x: Tensor) -> Tensor:
            if not self.batches:
                together.wait(10)
            return super().forward(x)

    def work(number: int) -> None:
        found[number] = extract_from(Waits(), SOURCE, batch_size=16, cache=tmp_path, name=f"{number}" * number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = extract_from(Flat(), SOURCE, batch_size=16)
    assert all(torch.equal(found[n], expected) for n in range(3))
    assert len(names(tmp_path)) == 1


_OTHER_PROCESS = """
import sys
from flexkern.features import extract_from
from helpers.made_images import Flat, Made
module = Flat()
print(float(extract_from(module, Made(60), cache=sys.argv[1]).sum()), sum(module.batches))
"""


def test_another_process_finds_them(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path)]
    total, computed = subprocess.check_output(command, text=True, env=environment).split()
    assert computed == "60"
    module = Flat()
    assert float(extract_from(module, SOURCE, cache=tmp_path).sum()) == float(total)
    assert module.batches == [1]  # the first is compared


# ------------------------------------------------------------------ mapped tensors


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_mapped_tensor_is_as_any_other(tmp_path: Path) -> None:
    expected = extract_from(Flat(), SOURCE)
    before = open_files() if os.path.isdir("/proc/self/fd") else None
    many = [extract_from(Flat(), SOURCE, cache=tmp_path) for _ in range(20)]
    if before is not None:
        assert open_files() == before
    found = many[0]
    assert torch.equal(copy.deepcopy(found), expected)
    assert torch.equal(pickle.loads(pickle.dumps(found)), expected)
    stored = io.BytesIO()
    torch.save(found, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored), expected)
    rows = torch.tensor([5, 1, 1, 59])
    assert torch.equal(found[rows], expected[rows])
    assert torch.equal(found[10:20].flip(0) @ found[:3].T, expected[10:20].flip(0) @ expected[:3].T)
    loader = DataLoader(TensorDataset(found), batch_size=16, num_workers=2)
    assert torch.equal(torch.cat([x for (x,) in loader]), expected)
    layer = nn.Linear(10, 2)
    layer(found[:5]).sum().backward()
    assert layer.weight.grad is not None
    (path,) = tmp_path.iterdir()
    path.unlink()
    assert torch.equal(found, expected)


def test_what_is_written_into_a_mapped_tensor_stays_in_it(tmp_path: Path) -> None:
    found = extract_from(Flat(), SOURCE, cache=tmp_path)
    expected = found.clone()
    found.zero_()
    again = extract_from(Flat(), SOURCE, cache=tmp_path)
    assert torch.equal(again, expected)
    assert not found.any()


def test_files_are_safetensors(tmp_path: Path) -> None:
    found = extract_from(Flat(), SOURCE, cache=tmp_path, dtype=torch.bfloat16)
    (path,) = tmp_path.iterdir()
    assert torch.equal(safetensors.torch.load_file(path)["features"], found)
    assert path.stat().st_size == FeatureCache(tmp_path).bytes


def test_no_inputs(tmp_path: Path) -> None:
    for _ in range(2):
        assert extract_from(Flat(), Made(0), cache=tmp_path).shape == (0, 10)


# ------------------------------------------------------------------ the folder


def test_a_cache_says_what_it_has_and_can_be_emptied(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new" / "features")
    assert (cache.files(), cache.bytes) == ([], 0)
    cache.clear()
    extract_from(Flat(), SOURCE, cache=cache, name="one")
    extract_from(Flat(), SOURCE[:7], cache=cache, dtype=torch.float16)
    (cache.folder / "mine.txt").write_text("kept")
    (cache.folder / f"features_{'a' * 32}.safetensors").write_text("no features")
    found = {f.name: (f.shape, f.dtype) for f in cache.files()}
    assert found == {"one": ((60, 10), torch.float32), "": ((7, 10), torch.float16)}
    assert cache.bytes == sum(f.path.stat().st_size for f in cache.files())
    cache.clear()
    assert names(cache.folder) == ["mine.txt"]
    assert is_computed(Flat(), SOURCE, cache.folder)
    assert pickle.loads(pickle.dumps(cache)).folder == copy.deepcopy(cache).folder == cache.folder


def test_a_full_disk_is_found_at_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"free": 2000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    module = Flat()
    with pytest.raises(OSError, match=r"features take 2,.* bytes, and 2,000 are free there"):
        extract_from(module, SOURCE, batch_size=10, cache=tmp_path)
    assert module.batches == [10]
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    module = Flat()
    with pytest.raises(OSError, match="file"):
        extract_from(module, SOURCE, batch_size=16, cache=tmp_path / "file")
    assert module.batches == [16]


def test_what_fails_at_once_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        extract_from(Flat(), Made(60, broken=3), cache=tmp_path / "new" / "features")
    assert names(tmp_path) == []
