"""``flexkern check backbone``: what it says, and that what it refuses is one red line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexkern.backbones.facts import backbone_facts
from flexkern.cli.app import app
from flexkern.nn import AdapterBank
from helpers.families import BLOCKS, FAMILIES, WIDTH, family

pytest.importorskip("transformers", reason="transformers is not installed")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["check", "backbone", *arguments], env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_the_facts(name: str) -> None:
    facts = backbone_facts(family(name))
    bank = AdapterBank(BLOCKS, WIDTH, 64)
    assert facts.bytes_per_task == 4 * bank.parameters_per_task
    assert (facts.feature, facts.prefix_tokens) == FAMILIES[name][1:]
    assert (facts.width, facts.blocks, facts.image_size, facts.patch_size) == (WIDTH, BLOCKS, 32, 8)
    assert facts.tokens == 16 + facts.prefix_tokens
    assert facts.seconds > 0
    if name.startswith("timm"):
        assert facts.family.startswith("timm")


def test_a_folder_in_words_and_as_json(tmp_path: Path) -> None:
    family("ViT").save_pretrained(tmp_path)  # type: ignore[operator]
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    code, out, _ = run(os.fspath(tmp_path), "--image-size", "48", "--dtype", "bfloat16")
    assert code == 0, out
    for words in (
        "ViT (ViTModel)", "48 x 48 pixels, patches of 8 x 8", "37, of which 1 before",
        "class token, 32 numbers", "mean 0.485, 0.456, 0.406; standard deviation 0.229",
        "in bfloat16, 2 blocks", "33,536 bytes a task", " ms",
    ):  # fmt: skip
        assert words in out, words
    code, out, _ = run(os.fspath(tmp_path), "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["image_size"], facts["mean"]) == (32, said["image_mean"])


def test_the_embedded_one() -> None:
    code, out, _ = run("small")
    assert code == 0
    assert "images stay in [0, 1]" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nope"], "there is no folder at './nope'"),
        (["small", "--image-size", "7"], "image_size must be a multiple"),
        (["small", "--image-size", "0"], "image_size must be at least 1"),
        (["small", "--dtype", "int8"], "dtype must be one of"),
        (["small", "--dtype", "float31"], "did you mean 'float32'"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    assert error.startswith("flexkern check backbone: ")
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_vit(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path)
    code, _, error = run(os.fspath(tmp_path))
    assert code == 1
    assert "'bert', which is no vision transformer" in error
