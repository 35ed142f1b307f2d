"""The norm of a model's gradients where some of them never existed: it is that of the others.

Trainers log this norm at every step by ``clip_grad_norm_(parameters, inf)``. So it must not fail; and a limit
that is finite must, because the norm that it would be compared with lacks the largest gradients of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["NormOfOthers", "foreach_norms", "norm_of_none"]

_NONE, _NORM, _FACTOR = (
    "norm of a gradient that does not exist",
    "norm of the others",
    "factor of an infinite limit",
)

# The way of torch.nn.utils.clip_grad_norm_: what each of its functions makes of what. All others give plain
# tensors.
_WAY: dict[tuple[str, Any], str] = {
    (_NONE, Tensor.to): _NONE,
    (_NONE, torch.stack): _NORM,
    (_NORM, Tensor.to): _NORM,
    (_NORM, torch.stack): _NORM,
    (_NORM, torch.linalg.vector_norm): _NORM,
    (_NORM, Tensor.add): _NORM,
    (_NORM, Tensor.__add__): _NORM,
    (_NORM, Tensor.__rtruediv__): _FACTOR,
    (_FACTOR, torch.clamp): _FACTOR,
    (_FACTOR, Tensor.clamp): _FACTOR,
    (_FACTOR, Tensor.to): _FACTOR,
}


class NormOfOthers(Tensor):
    """A norm over gradients of which some do not exist.

    It can be read like any tensor, and what is computed from it is a plain one, but for the steps of
    ``clip_grad_norm_``: divided into an infinite limit it gives a factor that clips nothing, without a look at
    its value, which would wait for the device; a finite limit is an error. The norm of a gradient that does not
    exist can only be put together with those of others.
    """

    stage: str
    refusal: Callable[[str], RuntimeError]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = args[0] if func is torch.stack else (*args, *kwargs.values())
        mine = [value for value in given if isinstance(value, NormOfOthers)]
        stage, refusal = mine[0].stage, mine[0].refusal
        following = _WAY.get((stage, func))
        if stage == _NONE and following is None and getattr(func, "__name__", "") != "__get__":
            raise refusal("reading its norm")
        if stage == _FACTOR and func in (Tensor.mul_, torch._foreach_mul_):
            return args[0]  # times 1
        if following == _FACTOR and stage == _NORM:
            if float(args[1]) != float("inf"):
                raise refusal("clip_grad_norm_ with a finite max_norm")
            return _at(torch.ones_like(_plain(args[0])), _FACTOR, refusal)
        result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        return result if following is None else _at(result, following, refusal)


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, NormOfOthers) else value


def _at(value: Tensor, stage: str, refusal: Callable[[str], RuntimeError]) -> NormOfOthers:
    norm = value.as_subclass(NormOfOthers)
    norm.stage, norm.refusal = stage, refusal
    return norm


def norm_of_none(grad: Tensor, refusal: Callable[[str], RuntimeError]) -> NormOfOthers:
    """What stands for the norm of a gradient that does not exist: 0 among those of others.

    Args:
        grad: of which dtype and device it is to be.
        refusal: makes the error for what cannot be done, from words for it.
    """
    return _at(torch.zeros((), dtype=grad.dtype, device=grad.device), _NONE, refusal)


def foreach_norms(
    grads: list[Tensor],
    rest: tuple[Any, ...],
    kwargs: dict[str, Any],
    does_not_exist: Callable[[Tensor], bool],
    refusal: Callable[[str], RuntimeError],
) -> list[Tensor]:
    """``torch._foreach_norm`` of gradients of which some do not exist; arguments as there and above."""
    there = [grad for grad in grads if not does_not_exist(grad)]
    norms = iter(torch._foreach_norm(there, *rest, **kwargs) if there else ())
    return [norm_of_none(grad, refusal) if does_not_exist(grad) else next(norms) for grad in grads]
