"""What a checkpoint holds beside the learner: the backbone's name, and notes of who saved it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexkern.learners import load_learner, make_learner
from flexkern.learners.checkpoint import read_notes, read_record
from helpers import tiny_vit

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    tiny_vit.backbone().save_pretrained(folder)
    return folder


def saved(path: Path, backbone: Any, **options: Any) -> Path:
    learner = make_learner("simplecil", backbone)
    learner.learn(tiny_vit.stream()[0])
    learner.save(path, **options)
    return path


def test_a_folder_is_found_again_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    path = saved(tmp_path / "learner.safetensors", "tiny")
    monkeypatch.chdir(tmp_path)
    learner = load_learner(path)
    assert learner.classes_seen == 2
    learner.save(tmp_path / "again.safetensors")  # it keeps the name
    assert read_record(tmp_path / "again.safetensors")["frozen_name"] == str(folder)
    given = load_learner(path, backbone=tiny_vit.backbone())  # the same weights
    given.save(tmp_path / "given.safetensors")
    assert load_learner(tmp_path / "given.safetensors").classes_seen == 2


def test_a_name_and_a_module() -> None:
    assert make_learner("simplecil", "small")._frozen_name == "small"
    assert make_learner("simplecil", tiny_vit.backbone())._frozen_name is None


def test_a_module_must_be_given_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "learner.safetensors", tiny_vit.backbone())
    assert "frozen_name" not in read_record(path)
    with pytest.raises(ValueError, match="not the one that this learner was made with"):
        load_learner(path)
    assert load_learner(path, backbone=tiny_vit.backbone()).classes_seen == 2


def test_a_folder_that_has_other_weights_now_is_refused(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "network"
    tiny_vit.backbone().save_pretrained(there)
    path = saved(tmp_path / "learner.safetensors", there)
    tiny_vit.backbone(weights=1).save_pretrained(there)
    with pytest.raises(ValueError, match="not the one that this learner was made with"):
        load_learner(path)
    assert load_learner(path, backbone=folder).classes_seen == 2


def test_notes_come_back(tmp_path: Path) -> None:
    notes = {"by": "a test", "numbers": [1, 2.5, None]}
    path = saved(tmp_path / "learner.safetensors", tiny_vit.backbone(), notes=notes)
    assert read_notes(path) == notes
    assert read_notes(saved(path, tiny_vit.backbone())) == {}


def test_an_experience_is_checked_without_learning_it() -> None:
    learner, stream = make_learner("simplecil", tiny_vit.backbone()), tiny_vit.stream()
    learner.check(stream[0])
    with pytest.raises(ValueError, match="its labels must be the classes from 0 on"):
        learner.check(stream[1])
    with pytest.raises(TypeError, match="experience must be"):
        learner.check("stream")
    assert learner.classes_seen == learner.items_learned == 0
