"""Random calls of the operators on adapters, prototypes, fields and masks, each with its judge."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.reference import prototype as reference_prototype
from fuzz.step_calls import Arguments, Call, dtype_of
from helpers import judge, judge_adapter
from helpers.draw import (
    MATRICES,
    chance,
    either,
    field,
    normal,
    number,
    number_of,
    placed,
    shape_of,
    uniform,
    wild,
)
from helpers.judge import assert_within, same_bits

__all__ = ["adapter", "completion", "field_call", "logits_call", "materialize", "pack", "unpack"]


def adapter(rng: np.random.Generator) -> Call:
    size = [either(rng, *v) for v in ((0, 1, 2, 5), (0, 1, 3), (1, 3, 8, 33), (1, 2, 5, 16), (0, 1, 3))]
    samples, positions, d, r, tasks = size
    dtype = dtype_of(rng)
    shapes = {
        "x": (samples, positions, d),
        "down": (tasks, d, r),
        "down_bias": (tasks, r),
        "up": (tasks, r, d),
        "up_bias": (tasks, d),
        "residual": (samples, positions, d),
    }
    if chance(rng, 0.4):
        del shapes["residual"]
    tensors = {
        n: placed(rng, torch.from_numpy(rng.integers(-4, 5, size=s)).to(dtype) / 4, written=False)
        for n, s in shapes.items()
    }
    index = torch.from_numpy(rng.integers(-1, tasks, size=samples)).to(either(rng, torch.int32, torch.int64))
    arguments: Arguments = {**tensors, "index": index, "scale": number(rng, 1.0, 0.5, -2.0, 0.0, tensor=False)}
    is_wild = chance(rng, 0.1)
    if is_wild:
        arguments["x"] = wild(rng, arguments["x"].detach().clone())
    if chance(rng, 0.3):
        arguments |= {
            "dropout_p": number(rng, 0.0, 0.125, 0.5, tensor=False),
            "seed": either(rng, 5, 2**64 - 1, np.int64(3), torch.tensor(7), torch.tensor([-3])),
        }
    has_grads = chance(rng, 0.3)
    if has_grads:
        arguments["x"] = arguments["x"].detach().clone().requires_grad_()

    def look(before: Arguments, _: Arguments, out: Tensor) -> None:
        p, seed = number_of(before.get("dropout_p", 0.0)), before.get("seed")
        if p and not isinstance(seed, Tensor):
            seed = torch.tensor([int(seed) - (1 << 64) if int(seed) >> 63 else int(seed)])
        case = judge_adapter.Case(
            before["x"],
            before["down"],
            before["down_bias"],
            before["up"],
            before["up_bias"],
            before["index"],
            before.get("residual"),
            seed if p else None,
            number_of(before["scale"]),
            p,
        )
        value, _ = judge_adapter.judge_forward(case)
        judge_adapter.assert_near(out.detach(), value)
        assert out.requires_grad == has_grads

    known = dtype is not torch.float64 and not is_wild
    return Call(ops.gated_adapter, arguments, (), look if known else None)


def logits_call(rng: np.random.Generator) -> Call:
    n, k, dim, c = (either(rng, *v) for v in ((0, 1, 3), (1, 2, 3), (1, 7), (0, 1, 4)))
    dtype = dtype_of(rng)
    arguments: Arguments = {
        "features": placed(rng, normal(rng, (n, k, dim), dtype), written=False),
        "prototypes": placed(rng, normal(rng, (c, k, dim), either(rng, dtype, torch.float32)), written=False),
        "own_subspace": torch.from_numpy(rng.integers(0, k, size=c)),
        "weight": number(rng, 0.125, 0.0, -1.0, tensor=False),
        "reweighting": either(rng, "code", "paper"),
        "base": chance(rng, 0.4),
        "base_weight": number(rng, 0.25, tensor=False),
    }
    if chance(rng, 0.4):
        arguments["openings"] = uniform(rng, (n, k))
    if arguments["base"] and k > 1:  # the first subspace is no task's
        arguments["own_subspace"].clamp_(min=1)

    def look(before: Arguments, _: Arguments, logits: Tensor) -> None:
        exact = {
            n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in before.items()
        }
        expected = reference_prototype.prototype_logits(**exact)
        # Unit vectors of dim products in k subspaces, with weights of at most 1.25 each; all added up.
        bound = 4 * k * (k * dim + 2 * dim + 6) * judge.U
        assert_within(logits, expected, torch.tensor(bound))

    return Call(ops.prototype_logits, arguments, (), look, 1e-3)


def completion(rng: np.random.Generator) -> Call:
    k, dim, c = (either(rng, *v) for v in ((1, 2, 3), (1, 7), (0, 1, 4)))
    arguments: Arguments = {
        "prototypes": placed(rng, normal(rng, (c, k, dim), dtype_of(rng)), written=False),
        "own_subspace": torch.from_numpy(rng.integers(0, k, size=c)),
        "over": either(rng, "later", "new"),
    }
    if chance(rng, 0.4):
        arguments["known"] = uniform(rng, (c, k)) < 0.6
        arguments["known"][torch.arange(c), arguments["own_subspace"]] = True

    def look(before: Arguments, _: Arguments, completed: Tensor) -> None:
        exact = {**before, "prototypes": before["prototypes"].double()}
        exact["known"] = before.get("known", torch.arange(k) <= before["own_subspace"][:, None])
        expected = reference_prototype.complete_prototypes(**exact)
        bound = (
            16
            * (c + 2 * dim + 6)
            * judge.U
            * (1 + expected.abs().max() if expected.numel() else torch.tensor(1.0))
        )
        assert_within(completed, expected, bound)

    return Call(ops.complete_prototypes, arguments, (), look, 1e-3)


def materialize(rng: np.random.Generator) -> Call:
    of, shape = field(rng, of_anchor=chance(rng, 0.5)), shape_of(rng)

    def look(before: Arguments, _: Arguments, values: Tensor) -> None:
        assert same_bits(values, reference.materialize(before["field"], shape, torch.device("cpu")))

    return Call(ops.materialize, {"field": of, "shape": either(rng, tuple, list, torch.Size)(shape)}, (), look)


def field_call(rng: np.random.Generator) -> Call:
    arguments = {
        "shape": shape_of(rng),
        "seed": int(rng.integers(1 << 63)),
        "stream": int(rng.integers(99)),
        "offset": int(either(rng, 0, 3, 2**40 + 3)),
        "device": either(rng, None, "cpu"),
    }

    def look(before: Arguments, _: Arguments, values: Tensor) -> None:
        of = Field.uniform(before["seed"], before["stream"], offset=before["offset"])
        assert same_bits(values, reference.materialize(of, before["shape"], torch.device("cpu")))

    return Call(ops.flexibility_field, arguments, (), look)


def pack(rng: np.random.Generator) -> Call:
    mask = uniform(rng, either(rng, *MATRICES)) < 0.5

    def look(before: Arguments, _: Arguments, words: Tensor) -> None:
        assert same_bits(words, reference.pack_mask(before["mask"]))

    return Call(ops.pack_mask, {"mask": placed(rng, mask, written=False)}, (), look)


def unpack(rng: np.random.Generator) -> Call:
    mask = uniform(rng, either(rng, *MATRICES)) < 0.5
    arguments = {"words": placed(rng, reference.pack_mask(mask), written=False), "columns": mask.shape[1]}

    def look(before: Arguments, _: Arguments, unpacked: Tensor) -> None:
        assert torch.equal(unpacked, reference.unpack_mask(before["words"], before["columns"]))

    return Call(ops.unpack_mask, arguments, (), look)
