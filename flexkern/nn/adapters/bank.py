"""Adapters of all tasks and layers, in tensors that grow by doubling (arXiv 2410.05899).

See docs/design.md, Artsy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexkern.distributed import first_row
from flexkern.nn.adapters.shared_dropout import adapted_from
from flexkern.ops import gated_adapter
from flexkern.plain import number, whole_number

__all__ = ["AdapterBank"]

TENSORS = ("down", "down_bias", "up", "up_bias")  # of an adapter


class _Rows(torch.autograd.Function):
    """A stack of adapters as one tensor, whose gradient goes to the parameters that are its trainable rows."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, rows: list[int], *_parameters: Tensor) -> Tensor:
        ctx.rows = rows
        return stack.view_as(stack)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *(grads[0][row] for row in ctx.rows)


class Task(nn.Module):
    """One task's rows: parameters ``{name}_{layer}``, each a view into memory that the bank has for more."""

    def row(self, name: str, layer: int) -> nn.Parameter:
        return getattr(self, f"{name}_{layer}")

    @property
    def settled(self) -> bool:
        """Whether it is frozen: see :class:`flexkern.nn.undo.Undo`."""
        return not any(row is not None and row.requires_grad for row in self._parameters.values())

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the bank makes frozen rows anew. Pickled as they are, each would be written with the memory
        # of all tasks that it is a view into. Others may be an optimizer's: they stay what they are.
        state = self.__dict__.copy()
        state["_parameters"] = {
            name: row if row is not None and row.requires_grad else None
            for name, row in self._parameters.items()
        }
        return state

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        _metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Writes into the rows, where torch might put other parameters in their place (``assign=True``, or
        parameters that are swapped): those would be no part of the stacks."""
        for name, row in self._parameters.items():
            assert row is not None
            saved = state_dict.get(prefix + name)
            if saved is None:
                if strict:
                    missing_keys.append(prefix + name)
            elif saved.shape != row.shape:
                error_msgs.append(
                    f"size mismatch for {prefix + name}: the state has {tuple(saved.shape)}, this bank "
                    f"{tuple(row.shape)}."
                )
            else:
                with torch.no_grad():
                    row.copy_(saved)
        if strict:
            mine = {prefix + name for name in self._parameters}
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in mine]


class AdapterBank(nn.Module):
    """One ReLU bottleneck for each layer and task: ``scale * (dropout(relu(x @ down + b)) @ up + c)``.

    Each layer's adapters lie in one tensor for all tasks, [capacity, ...], which the kernel
    :func:`flexkern.ops.gated_adapter` indexes by the task of each sample. Each row is a parameter of its own,
    so an optimizer gets one task's parameters (:meth:`parameters_of`), and frozen tasks get no gradient. When
    the capacity is used up it doubles: the rows move, and the parameters that optimizers hold stay the same
    objects.

    Args:
        layers: blocks of the network.
        width: its tokens' width, d.
        rank: r, the bottleneck; EASE has 64 (1,189,632 parameters per task for ViT-B/16).
        scale: of the adapters' output; EASE has 0.1.
        dropout: of the bottleneck while training; EASE has 0.1.
        capacity: tasks that there is room for at first.
        dtype, device: as for any module.

    Raises:
        ValueError: if a number is outside its range.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        rank: int = 64,
        *,
        scale: float = 0.1,
        dropout: float = 0.1,
        capacity: int = 4,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        layers = self.layers = whole_number(layers, "layers")
        width = self.width = whole_number(width, "width")
        rank = self.rank = whole_number(rank, "rank")
        capacity = whole_number(capacity, "capacity")
        self.scale = number(scale, "scale")
        self.dropout = number(dropout, "dropout", 0, 1, below=True)
        self.rows = nn.ModuleList()
        shapes = {"down": (width, rank), "down_bias": (rank,), "up": (rank, width), "up_bias": (width,)}
        # Of each layer, by name. Not buffers: the rows, which are parameters, are the state.
        self._stacks = [
            {
                name: torch.zeros((capacity, *shape), dtype=dtype, device=device)
                for name, shape in shapes.items()
            }
            for _ in range(layers)
        ]

    # ------------------------------------------------------------------ tasks

    @property
    def tasks(self) -> int:
        """How many tasks have adapters."""
        return len(self.rows)

    @property
    def capacity(self) -> int:
        """How many tasks there is room for."""
        return len(self._stacks[0]["down"])

    @property
    def dtype(self) -> torch.dtype:
        """Of the adapters."""
        return self._stacks[0]["down"].dtype

    @property
    def parameters_per_task(self) -> int:
        """Numbers that one task adds."""
        return sum(stacks[name][0].numel() for stacks in self._stacks for name in TENSORS)

    def bytes_with(self, tasks: int) -> int:
        """What so many tasks take where the bank computes, with the room that it has for more then."""
        capacity = self.capacity
        while capacity < tasks:
            capacity *= 2
        return capacity * self.parameters_per_task * self.dtype.itemsize

    def add_task(self, *, generator: torch.Generator | None = None) -> int:
        """Makes adapters for one more task, trainable, freezes all others, and returns its number.

        Their output is 0 at first: the up-projection and the biases are 0, the down-projection is
        Kaiming-uniform with a = sqrt(5), drawn from ``generator`` (of the CPU), as in EASE.
        """
        task = self.tasks
        self._make_room()
        self.freeze()
        bound = 1 / math.sqrt(self.width)
        rows = Task()
        for layer in range(self.layers):
            # On the CPU and in float32, whatever the defaults are: the same numbers everywhere.
            draw = torch.rand((self.width, self.rank), generator=generator, dtype=torch.float32, device="cpu")
            draw = draw * (2 * bound) - bound
            room = self._room(layer)
            room["down"].copy_(draw)
            for name in TENSORS[1:]:
                room[name].zero_()  # to_empty() may have left anything in rows that no task had
            for name in TENSORS:
                rows.register_parameter(f"{name}_{layer}", nn.Parameter(room[name]))
        self.rows.append(rows)
        return task

    def _make_room(self) -> None:
        """For one more task."""
        if self.tasks == self.capacity:
            self._grow(2 * self.tasks)
        else:
            self._tie()  # the last one to grow may have been interrupted here

    def _room(self, layer: int) -> dict[str, Tensor]:
        """Where the values of one more task go."""
        return {name: stack[self.tasks] for name, stack in self._stacks[layer].items()}

    def remove_last(self) -> None:
        """Takes the last task's adapters out again; their rows are the next task's.

        Raises:
            ValueError: if there is none.
        """
        if not self.tasks:
            raise ValueError("the bank has no adapters to remove")
        self.rows = self.rows[:-1]  # a new list: what puts it back has the old one

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """The parameters of one task, for an optimizer."""
        return list(self.rows[task].parameters())

    def freeze(self) -> None:
        """No adapter is trained any more; their gradients are given up, which take as much memory."""
        for rows in self.rows:  # not requires_grad_ of them all, which takes ten times as long with many tasks
            for row in rows._parameters.values():
                if row is not None and row.requires_grad:
                    row.requires_grad_(False)
                    row.grad = None

    def _grow(self, capacity: int) -> None:
        grown = []
        for stacks in self._stacks:
            grown.append({n: old.new_zeros((capacity, *old.shape[1:])) for n, old in stacks.items()})
            for name, old in stacks.items():
                grown[-1][name][: len(old)] = old
        self._stacks = grown  # at once, and filled: an interrupt leaves the old ones or the new ones
        self._tie()

    def _tie(self, fn: Callable[[Tensor], Tensor] | None = None) -> None:
        """Makes each parameter a view of its row again; ``fn`` converts its gradient."""
        for task in range(self.tasks):
            for layer, stacks in enumerate(self._stacks):
                for name in TENSORS:
                    row, values = self.rows[task]._parameters[f"{name}_{layer}"], stacks[name][task]
                    if row is None:  # frozen, of a bank that was copied
                        row = nn.Parameter(values, requires_grad=False)
                        self.rows[task].register_parameter(f"{name}_{layer}", row)
                    grad, row.grad = row.grad, None
                    if torch._has_compatible_shallow_copy_type(row, values):
                        row.data = values
                    else:  # from or to a device of another kind, such as meta: a parameter cannot follow
                        row = nn.Parameter(values, requires_grad=row.requires_grad)
                        self.rows[task].register_parameter(f"{name}_{layer}", row)
                    if grad is not None:
                        row.grad = grad if fn is None else fn(grad)

    def _row(self, task: int, name: str, layer: int) -> nn.Parameter:
        return cast(Task, self.rows[task]).row(name, layer)

    # ------------------------------------------------------------------ computing

    def forward(self, layer: int, x: Tensor, task: int | Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual`` plus the adapters' output at one layer.

        Args:
            layer: which block.
            x: [S, L, width], what the block's MLP (and the norm before it) reads.
            task: of all samples, or integers [S] with the task of each, -1 for none; samples of one task should
                stand together.
            residual: [S, L, width], what to add to; None for 0.

        Returns:
            [S, L, width]. Gradients reach ``x``, ``residual`` and the trainable rows.
        """
        if isinstance(task, int):
            stacks: list[Tensor] = [self._one(task, name, layer).unsqueeze(0) for name in TENSORS]
            index = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        else:
            stacks = [self._stack(name, layer) for name in TENSORS]
            index = task
        down, down_bias, up, up_bias = stacks
        p = self.dropout if self.training else 0.0
        if p and first_row() and isinstance(task, int):
            one = [stack[0] for stack in stacks]
            return adapted_from(first_row(), x, *one, scale=self.scale, residual=residual, dropout_p=p)
        return gated_adapter(
            x, down, down_bias, up, up_bias, index, scale=self.scale, residual=residual, dropout_p=p
        )

    def grouped(self, task: Any) -> Any:
        """The tasks of some samples as :meth:`forward` takes them at the least cost, at all layers."""
        return task

    def prefetch(self, task: Any) -> None:
        """Begins to bring to the device what samples of these tasks need, as :meth:`grouped` has them."""

    def _one(self, task: int, name: str, layer: int) -> Tensor:
        """A row where the bank computes."""
        return self._row(task, name, layer)

    def _stack(self, name: str, layer: int) -> Tensor:
        stack = self._stacks[layer][name][: self.tasks]
        if not torch.is_grad_enabled():
            return stack
        trainable = [t for t in range(self.tasks) if self._row(t, name, layer).requires_grad]
        if not trainable:
            return stack
        return _Rows.apply(stack, trainable, *(self._row(t, name, layer) for t in trainable))

    # ------------------------------------------------------------------ moving, saving

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterBank:
        # Not torch's own, which converts parameters one by one, or swaps them: they are views of the stacks.
        with torch.no_grad():
            for stacks in self._stacks:
                for name in TENSORS:
                    stacks[name] = fn(stacks[name])
            self._tie(fn)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tie()  # a copy has copied parameters and stacks one by one

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        # Before the rows load themselves, there must be as many as were saved.
        start = f"{prefix}rows."
        saved = {name: value for name, value in state_dict.items() if name.startswith(start)}
        while self.tasks < len({name[len(start) :].split(".")[0] for name in saved}):
            self.add_task()
        if local_metadata.get("assign_to_params_buffers", False) and saved:
            # The state's dtype and device are taken over; its tensors are copied into the stacks.
            self._take_over(next(iter(saved.values())))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _take_over(self, like: Tensor) -> None:
        for stacks in self._stacks:
            for name, stack in stacks.items():
                stacks[name] = torch.zeros_like(stack, dtype=like.dtype, device=like.device)
        self._tie()

    def extra_repr(self) -> str:
        return (
            f"layers={self.layers}, width={self.width}, rank={self.rank}, scale={self.scale}, "
            f"dropout={self.dropout}, tasks={self.tasks}, capacity={self.capacity}"
        )
