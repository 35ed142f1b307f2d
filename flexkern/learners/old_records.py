"""Checkpoints of before all learners had one format: their records and tensors in today's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flexkern.streams.augment import as_bytes

__all__ = ["translated"]

_FORMAT = 1  # of the first two kinds of records, which name a class as "learner", and no method

_METHODS = {
    "MetaplasticMLP": "metaplastic",
    "ElasticMLP": "ewc",
    "IntelligentMLP": "si",
    "ReplayMLP": "replay",
    "JointMLP": "joint",
    "ArtsyViT": "artsy",
    "SimpleCIL": "simplecil",
    "RanPAC": "ranpac",
    "FinetuneViT": "finetune",
    "JointViT": "joint",
}


def translated(tensors: dict[str, Tensor], record: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint as :meth:`flexkern.learners.base.Learner.save` writes it today.

    One of today's is returned as it is; of a format that is not known only what names it. The record has passed
    :func:`flexkern.learners.schema.check_record`, if its format is known.
    """
    kept = tensors.get("model.kept.images")
    if kept is not None and kept.is_floating_point():  # joint training once kept images as they were given
        tensors = tensors | {"model.kept.images": as_bytes(kept)}
    if "learner" not in record:
        return tensors, record
    name = record["learner"]
    on_transformer = "backbone" in record
    named = {
        "format": record.get("format"),
        "family": "vit" if on_transformer else "mlp",
        "method": _METHODS.get(name, name),
        "class": name,
    }
    if named["format"] != _FORMAT:
        return tensors, named
    return _of_vit(tensors, record, named) if on_transformer else (tensors, _of_mlp(record, named))


def _of_mlp(record: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    item = record["item_name"]
    return named | {
        "configuration": record["configuration"],
        "frozen": record["features"],
        "progress": {
            "items_learned": record["items_learned"],
            "epochs_done": record["epochs_done"],
            "begun": None if item is None else {"name": item},
        },
        "model": record.get("model", {}),  # the first ones had tensors only
        "optimizer": record["optimizer"],
    }


def _of_vit(
    tensors: dict[str, Tensor], record: dict[str, Any], named: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    training = record.get("training", {"epochs_done": 0, "optimizer": None})
    renamed = {
        f"model.{k.removeprefix('modules.')}" if k.startswith("modules.") else k: v for k, v in tensors.items()
    }
    return renamed, named | {
        "configuration": record["configuration"],
        "frozen": record["backbone"],
        "progress": {
            "items_learned": record["tasks_learned"],
            "epochs_done": training["epochs_done"],
            "begun": record["begun"],
            "classes_seen": record["classes_seen"],
        },
        "model": {},
        "optimizer": training["optimizer"],
    }
