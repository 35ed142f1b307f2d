"""Networks that timm wrote, in folders, by name and on the hub; none of it is run, and nothing is made up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexkern import backbones
from helpers.families import TIMM, WIDTH, family
from helpers.timm_models import import_timm

timm = import_timm()
NAME = "vit_tiny_patch16_224"


def written(folder: Path, name: str = NAME, *, safe: bool = True, **options: Any) -> Any:
    torch.manual_seed(3)
    model = timm.create_model(name, **(TIMM | options)).eval()
    timm.models.save_for_hf(model, folder, safe_serialization=safe)
    return model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("timm") / "sound"
    return folder, written(folder, global_pool="avg")


@pytest.fixture
def folder(sound: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound[0], tmp_path / "other"))


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def pooled(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_head(model.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (NAME, {"global_pool": "avg", "reg_tokens": 2}),
        ("vit_base_patch16_siglip_224", {}),
        ("eva02_tiny_patch14_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=["avg", "SigLIP", "EVA-02", "DeiT"],
)
def test_a_folder(name: str, options: dict[str, Any], safe: bool, tmp_path: Path) -> None:
    model = written(tmp_path, name, safe=safe, **options)
    x = torch.rand(2, 3, 32, 32)
    for source in (tmp_path, f"local-dir:{tmp_path}"):
        loaded = backbones.load_backbone(source)
        assert torch.equal(pooled(loaded, x), pooled(model, x))
        assert not loaded.training
        said = backbones.normalisation(loaded)
        assert said == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        assert (backbones.image_size(loaded), backbones.width_of(loaded)) == (32, WIDTH)


def test_a_folder_of_an_earlier_timm_pools_as_it_says(sound: tuple[Path, Any], folder: Path) -> None:
    """It wrote no arguments that were not given by name, but what the network pooled."""
    said = json.loads((folder / "config.json").read_text())
    arguments = {k: v for k, v in said["model_args"].items() if k != "global_pool"}
    configure(folder, model_args=arguments)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(pooled(backbones.load_backbone(folder), x), pooled(sound[1], x))


def test_weights_that_are_half_or_have_no_head(sound: tuple[Path, Any], folder: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        for name in [n for n in state if n.startswith("head.")]:
            del state[name]
        state.update({name: value.half() for name, value in state.items()})

    rewrite(folder, change)
    loaded = backbones.load_backbone(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(pooled(loaded, x), pooled(sound[1], x), rtol=0, atol=0.02)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.fspath(self.path), "w")


def test_weights_in_a_pickle_do_not_run(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"head.weight": _Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds more than weights"):
        backbones.load_backbone(folder)
    assert not (tmp_path / "ran").exists()


def _arguments(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        configure(folder, model_args=said["model_args"] | changes)

    return change


def _cfg(folder: Path, **changes: Any) -> None:
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    configure(folder, pretrained_cfg=cfg | changes)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights: none of model"),
    "noise": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 200_000), "cannot be read"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 60_000), "cannot be read"),
    "no such": (lambda f: configure(f, architecture="vit_none"), "which this timm does not have"),
    "a list": (lambda f: configure(f, architecture=["a"]), "must have an architecture, a string"),
    "no ViT": (lambda f: configure(f, architecture="resnet18", model_args={}), "timm's ResNet, which is not"),
    "CaiT": (lambda f: configure(f, architecture="cait_xxs24_224", model_args={}), "timm's Cait, which is not"),
    "arguments": (
        lambda f: configure(f, model_args=[1]),
        "model_args in the config.json of .* must be an object",
    ),
    "cfg": (
        lambda f: configure(f, pretrained_cfg=3),
        "pretrained_cfg in the config.json of .* must be an object",
    ),
    "no architecture": (
        lambda f: configure(f, architecture=None),
        "must have an architecture, a string",
    ),
    "mean": (lambda f: _cfg(f, mean=3), "pretrained_cfg', mean must be three numbers, got 3"),
    "a file": (_arguments(checkpoint_path="/etc/passwd"), "must not have 'checkpoint_path'"),
    "pretrained": (_arguments(pretrained=True), "must not have 'pretrained'"),
    "a class": (_arguments(block_fn="os.system"), "cannot be read"),
    "unknown": (_arguments(colour="red"), "cannot be read.*colour"),
    "huge": (_arguments(embed_dim=100_000), r"says \d+ weights, and model\.safetensors has"),
    "too deep": (_arguments(depth=10**9), r"must be in \[1, 1000\]"),
    "a block more": (_arguments(depth=3), r"no weights for blocks\.2.* and 9 more"),
    "a block less": (_arguments(depth=1), r"no place for: blocks\.1"),
    "other sizes": (_arguments(embed_dim=16), "other shapes for blocks"),
    "other images": (_arguments(img_size=64), "other shapes for pos_embed"),
    "other pooling": (_arguments(global_pool="token"), r"no weights for norm\.bias"),
    "a missing weight": (lambda f: rewrite(f, lambda s: s.pop("cls_token")), "no weights for cls_token"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_holds_no_such_network(folder: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        backbones.load_backbone(folder)
    assert str(folder) in str(caught.value) or case == "mean"
    assert str(caught.value).startswith("backbone: ")


def test_a_name_of_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return family("timm")

    monkeypatch.setattr(timm, "create_model", create)
    assert backbones.load_backbone(f"{NAME}.augreg_in21k") is family("timm")
    assert asked == [(NAME, False), (f"{NAME}.augreg_in21k", True)]


def test_a_name_without_weights_or_of_no_vit() -> None:
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224\.augreg_in21' cannot be read.*did you mean"):
        backbones.load_backbone("vit_tiny_patch16_224.augreg_in21")
    with pytest.raises(ValueError, match="'resnet18' is timm's ResNet, which is not supported"):
        backbones.load_backbone("resnet18")
    with pytest.raises(FileNotFoundError, match="there is no folder at 'vit_tiny_patch16_225'"):
        backbones.load_backbone("vit_tiny_patch16_225")


@pytest.mark.parametrize("source", ["timm/x", "hf-hub:org/x", "hf-hub:org/x@main", "org/x"])
@pytest.mark.parametrize("safe", [True, False])
def test_names_on_the_hub(source: str, safe: bool, folder: Path, sound: Any, monkeypatch: Any) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    if not safe:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    asked = []

    def download(repo_id: str, filename: str, revision: str | None = None) -> str:
        asked.append((repo_id, revision))
        if not (folder / filename).exists():
            raise EntryNotFoundError(filename)
        return os.fspath(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(pooled(backbones.load_backbone(source), x), pooled(sound[1], x))
    name, _, revision = source.removeprefix("hf-hub:").partition("@")
    assert set(asked) == {(name, revision or None)}


def test_without_timm_a_name_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FileNotFoundError, match=r"needs timm.*pip install timm torchvision"):
        backbones.load_backbone("vit_tiny_patch16_224")
    with pytest.raises(ImportError, match="pip install timm torchvision"):
        backbones.load_backbone(folder)
