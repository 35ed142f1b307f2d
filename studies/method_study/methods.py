"""The methods of the study, and the learner that each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studies.method_study.settings import Setting

__all__ = ["DEFAULT", "METHODS", "Method", "learner_options"]

_TWO_OPEN = {"gate": "ridge", "gating": "topk", "k": 2, "fill": True}


@dataclass(frozen=True)
class Method:
    """One of those that are compared.

    Args:
        name: for files and the command line.
        title: for tables.
        learner: the method's name for :func:`flexkern.learners.make_learner`.
        options: of the learner, beside those of the setting.
        head: how it answers from stored features (:class:`studies.heads.Head`); None: the learner itself runs.
        gate: of the head.
        head_options: of the head.
        layers: blocks whose tokens the head reads; 0: what the backbone pools.
        mean: whether it reads the mean of the patches' tokens, too (with ``layers=0``).
        first_session: as of :class:`flexkern.learners.RanPAC`: whether it reads what the first task's adapter
            makes of an image, or both that and what the backbone pools.
        whole_network: "finetune" or "joint", the setting's recipe for all of the network; "": it is frozen.
        at_once: all tasks are learned as one.
        remark: for tables.
    """

    name: str
    title: str
    learner: str
    options: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    gate: Mapping[str, Any] | None = None
    head_options: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 0
    mean: bool = False
    first_session: str = "none"
    whole_network: str = ""
    at_once: bool = False

    @property
    def adapted(self) -> bool:
        """Whether adapters take part that are trained once for all such methods."""
        return self.gate is not None or self.first_session != "none"


def _lda(layers: int) -> Method:
    title = f"LDA, {layers} layer{'s' if layers > 1 else ''}"
    return Method(f"lda-{layers}", title, "lda", {"layers": layers, "shrinkage": "oas"}, "lda", layers=layers)


def _ranpac(features: int, first_session: str = "none") -> Method:
    options: dict[str, Any] = {"features": features}
    name, title = f"ranpac-{features}", f"RanPAC, {features:,} features"
    if first_session != "none":
        name, title = f"{name}-first", f"{title}, adapted in the first task"
    learner = options | ({"first_session": first_session} if first_session != "none" else {})
    return Method(name, title, "ranpac", learner, "ridge", None, options, first_session=first_session)


def _artsy(name: str, title: str, gate: Mapping[str, Any]) -> Method:
    learner = "ease" if gate["gate"] == "none" else "artsy"
    return Method(name, title, learner, {} if learner == "ease" else {"gate": gate}, "prototype", gate)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("best", "`ArtsyViT.best()`", "artsy-best"),
        Method("lda", "LDA as `make_learner` has it", "lda"),
        _lda(6),
        _lda(3),
        _lda(1),
        _ranpac(2000),
        _ranpac(10_000),
        _ranpac(2000, "adapter"),
        Method("simplecil", "SimpleCIL", "simplecil", head="simplecil"),
        Method(
            "aper", "APER: SimpleCIL, adapted in the first task", "simplecil", {"first_session": "both"},
            "simplecil", first_session="both",
        ),
        _artsy("ease", "EASE", {"gate": "none"}),
        _artsy("artsy", "Artsy as in its paper", {"gate": "mlp"}),
        Method(
            "experts", "ridge and experts (the former `best()`)", "artsy",
            {"head": "experts", "evidence": "class+mean", "gate": _TWO_OPEN}, "experts", _TWO_OPEN, mean=True,
        ),
        Method("finetune", "fine-tuning", "finetune", whole_network="finetune"),
        Method("joint", "all tasks at once (not continual)", "joint", whole_network="joint", at_once=True),
        _artsy("oracle", "oracle gate (is told the task)", {"gate": "oracle"}),
        Method(
            "oracle-last-3", "oracle gate, adapters in the last three blocks", "artsy",
            {"gate": {"gate": "oracle"}, "blocks": 3},
        ),
    )
}  # fmt: skip
"""By name, in the order of tables."""

# 10,000 features want eigenvalues of 10,000 x 10,000 sums after each task: minutes each without a GPU.
DEFAULT = tuple(name for name in METHODS if name != "ranpac-10000")


def learner_options(method: Method, setting: Setting) -> dict[str, Any]:
    """Arguments of ``make_learner`` for a method; without backbone, seed and device."""
    options = dict(method.options) | {"precision": setting.precision, "calibration_images": 0}
    if method.learner in ("artsy", "ease", "artsy-best") or method.first_session != "none":
        recipe = setting.recipe
        options |= {"rank": setting.rank, "adapter_scale": setting.adapter_scale}
    elif not method.whole_network:
        return options  # nothing is trained
    else:
        recipe = setting.whole_network(method.whole_network)
    return options | {"epochs": recipe.epochs, "lr": recipe.lr, "crop": recipe.crop, "flip": recipe.flip}
