"""Backbones: the embedded transformer, a folder, a module; sizes by name."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flexkern import backbones

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def test_the_embedded_one_is_small_and_says_how_it_was_trained() -> None:
    model = backbones.load_backbone("small")
    assert sum(f.stat().st_size for f in backbones.SMALL.iterdir()) < 3_000_000
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_500_000
    assert (backbones.image_size(model), backbones.width_of(model)) == (32, 128)
    assert not model.training
    assert all(p.dtype is torch.float32 for p in model.parameters())
    record = json.loads((backbones.SMALL / "training.json").read_text())
    assert record["test_accuracy_of_60_classes"]["cifar10"] > 0.5


def test_a_folder_and_a_module(tmp_path: Path) -> None:
    model = backbones.random_backbone("small", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    loaded = backbones.load_backbone(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x).last_hidden_state, model(x).last_hidden_state)
    assert backbones.load_backbone(model) is model


@pytest.mark.parametrize(("size", "millions"), [("vit-b16", 86), ("vit-l16", 303)])
def test_sizes_of_the_papers(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = backbones.random_backbone(size)
    # 85.8 and 303.3 million without pooler and head (Dosovitskiy et al., 2021, table 1: 86 and 307 with them).
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert backbones.image_size(model) == 224


def test_errors() -> None:
    with pytest.raises(ValueError, match="size must be one of"):
        backbones.random_backbone("huge")
    with pytest.raises(OSError, match="no-such-folder"):
        backbones.load_backbone("./no-such-folder")
    with pytest.raises(ValueError, match="does not say its image size"):
        backbones.image_size(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="does not say the width"):
        backbones.width_of(nn.Linear(1, 1))


# ------------------------------------------------------------------ folders that someone else wrote


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "sound"
    backbones.random_backbone("small", num_hidden_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "other"))


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("known_type", [True, False])
def test_python_in_a_folder_does_not_run(
    folder: Path, tmp_path: Path, known_type: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by itself, nor by a "y" that stands on standard input."""
    ran = tmp_path / "ran"
    (folder / "theirs.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import ViTConfig as Theirs, ViTModel as Model\n"
    )
    configure(
        folder,
        auto_map={"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Model"},
        model_type="vit" if known_type else "theirs",
    )
    reading, writing = os.pipe()
    os.write(writing, b"y\n" * 5)
    os.close(writing)
    with os.fdopen(reading) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        if known_type:
            assert type(backbones.load_backbone(folder)) is transformers.ViTModel
        else:
            with pytest.raises(ValueError, match="cannot be read"):
                backbones.load_backbone(folder)
        assert answers.read() == "y\n" * 5
    assert not ran.exists()


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.fspath(self.path), "w")


def test_weights_in_a_pickle_do_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    state = dict(backbones.load_backbone(folder).state_dict())
    (folder / "model.safetensors").unlink()
    torch.save(state | {"head.weight": _Runs(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        backbones.load_backbone(folder)
    assert not ran.exists()
    torch.save(state, folder / "pytorch_model.bin")  # without code it is read
    for name, value in backbones.load_backbone(folder).state_dict().items():
        assert torch.equal(value, state[name])


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "an adapter": (_write("adapter_config.json", b"{}"), "holds an adapter"),
    "not JSON": (_write("config.json", b"{"), "config.json' is not JSON"),
    "deep JSON": (_write("config.json", b"[" * 100_000), "config.json' is not JSON"),
    "not UTF-8": (_write("config.json", b"\xff\xfe"), "config.json' is not JSON"),
    "a list": (_write("config.json", b"[]"), "must hold a JSON object, got list"),
    "another model": (lambda f: configure(f, model_type="bert"), "'bert', which is no vision transformer"),
    "no such model": (lambda f: configure(f, model_type="xyz"), "cannot be read.*xyz"),
    "quantized": (lambda f: configure(f, quantization_config={"quant_method": "gptq"}), "is quantized"),
    "a kernel": (lambda f: configure(f, _attn_implementation="them/theirs"), "attention from elsewhere"),
    "huge": (lambda f: configure(f, hidden_size=10**6, intermediate_size=10**6), r"says \d+ weights"),
    "too deep": (lambda f: configure(f, num_hidden_layers=10**9), r"must be in \[1, 1000\]"),
    "a block more": (lambda f: configure(f, num_hidden_layers=3), r"no weights for layers\.2.* and 13 more"),
    "a block less": (lambda f: configure(f, num_hidden_layers=1), r"more blocks than its config.*layers\.1"),
    "other sizes": (lambda f: configure(f, hidden_size=64), "other shapes for embeddings.cls_token"),
    "other images": (lambda f: configure(f, image_size=64), "other shapes for embeddings.position_emb"),
    "no patches": (lambda f: configure(f, patch_size=0), "cannot be read"),
    "a word": (lambda f: configure(f, num_hidden_layers="two"), "cannot be read"),
    "truncated": (_truncate, "cannot be read"),
    "noise": (_write("model.safetensors", b"x" * 2_000_000), "cannot be read"),
    "shards elsewhere": (
        _write("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}'),
        "must name files of its own folder",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_holds_no_such_model(folder: Path, case: str) -> None:
    spoil, message = BAD_FOLDERS[case]
    spoil(folder)
    before = transformers.utils.logging.get_verbosity()
    with pytest.raises((ValueError, OSError), match=message) as caught:
        backbones.load_backbone(folder)
    assert str(folder) in str(caught.value)
    assert transformers.utils.logging.get_verbosity() == before


@pytest.mark.parametrize(
    "source",
    ["./no-such", "~/no-such-folder", "/no/such", "a/b/c", "smal", "", "a/", "../x/y", Path("no/such")],
    ids=str,
)
def test_a_path_that_is_not_there_is_not_looked_for_elsewhere(source: Any, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        backbones.load_backbone(source)
    assert repr(os.fspath(source)) in str(caught.value)


def test_sources_of_other_kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotADirectoryError, match=r"config\.json' is a file"):
        backbones.load_backbone(folder / "config.json")
    with pytest.raises(TypeError, match=r"backbone must be a name, a folder or a torch\.nn\.Module, got int"):
        backbones.load_backbone(5)  # type: ignore[arg-type]
    monkeypatch.setenv("HOME" if sys.platform != "win32" else "USERPROFILE", os.fspath(folder.parent))
    assert backbones.width_of(backbones.load_backbone(f"~/{folder.name}")) == 128


def test_weights_of_a_head_may_be_there(folder: Path) -> None:
    from safetensors.torch import save_file

    state = backbones.load_backbone(folder).state_dict()
    renamed = {f"vit.{name}": value for name, value in state.items()}
    renamed["classifier.weight"] = torch.zeros(3, 128)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in backbones.load_backbone(folder).state_dict().items():
        assert torch.equal(value, state[name])


def test_a_path_whose_first_folder_is_here_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder at 'models/nope'"):
        backbones.load_backbone("models/nope")
