"""A bank of adapters that lie in the host's memory, or on its disk, and of which a few are on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.nn.adapters.bank import TENSORS, AdapterBank, Task
from flexkern.nn.adapters.groups import Part, TaskGroups
from flexkern.nn.adapters.homes import OFFLOADS, more_homes
from flexkern.nn.adapters.slots import LayerSlots, Slots
from flexkern.ops import gated_adapter
from flexkern.plain import choice, whole_number

__all__ = ["PagedAdapterBank"]


class PagedAdapterBank(AdapterBank):
    """An :class:`AdapterBank` whose tasks are offloaded: any number of them in the device's memory of a few.

    Each layer has ``resident_tasks`` slots on the device. A pass fetches the adapters of its tasks into them,
    layer by layer, those that were not used for the longest time making room; what is still there is not
    fetched again. On an NVIDIA GPU they are copied from page-locked memory by a stream of their own, all layers
    of a pass as soon as its tasks are known, while blocks before them compute; elsewhere they are copied where
    they are used. A pass that has more tasks than slots takes them in turns at each layer. Answers are those of
    an :class:`AdapterBank`, to the bit, and several threads may ask at once.

    The newest task's adapters are on the device, too, beside the slots, where they are trained; they go to the
    host when the next task is added. State dictionaries have the names and values of an
    :class:`AdapterBank`, and either loads the other's. Parameters of all tasks but the newest are tensors of
    the host.

    Args:
        layers, width, rank, scale, dropout, dtype, device: as :class:`AdapterBank`.
        resident_tasks: how many tasks the slots have room for, from 1 on.
        offload: where the others are: "cpu": in the host's memory; "disk": in a temporary file without a name,
            in the folder that ``TMPDIR`` says. A copy (pickle, ``copy.deepcopy``) passes through memory, and a
            forked process has the same file: only one of the two may learn.

    Raises:
        TypeError, ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        rank: int = 64,
        *,
        scale: float = 0.1,
        dropout: float = 0.1,
        resident_tasks: int = 8,
        offload: str = "cpu",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        resident_tasks = whole_number(resident_tasks, "resident_tasks")
        self.offload = choice(offload, "offload", OFFLOADS)
        super().__init__(
            layers, width, rank, scale=scale, dropout=dropout, capacity=resident_tasks, dtype=dtype,
            device=device,
        )  # fmt: skip
        self._homes: list[Tensor] = []  # of tasks in their order, and spare ones behind
        self._slots = Slots(self.layers, resident_tasks)

    @property
    def resident_tasks(self) -> int:
        """How many tasks the slots have room for."""
        return len(self._stacks[0]["down"])

    @property
    def capacity(self) -> int:
        """How many tasks there is room for without asking for more."""
        return len(self._homes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._stacks[0]["down"].device

    # ------------------------------------------------------------------ tasks

    def bytes_with(self, tasks: int) -> int:
        """What so many tasks take where the bank computes: the slots, and the newest one. On a CPU all that are
        in its memory."""
        at_home = tasks if self.offload == "cpu" and self.device.type == "cpu" else 0
        return (self.resident_tasks + 1 + at_home) * self.parameters_per_task * self.dtype.itemsize

    def _make_room(self) -> None:
        if self.tasks:
            self._send_home(self.tasks - 1)
        if self.tasks >= len(self._homes):
            self._homes = [*self._homes, *self._more_homes(len(self._homes), self.dtype)]

    def _more_homes(self, have: int, dtype: torch.dtype) -> list[Tensor]:
        pinned = self.device.type == "cuda"
        return more_homes(have, self.parameters_per_task, dtype, self.offload, pinned=pinned)

    def _room(self, layer: int) -> dict[str, Tensor]:
        # Where it is trained. An interrupt before it is a task's leaves nothing behind.
        return {name: torch.empty_like(stack[0]) for name, stack in self._stacks[layer].items()}

    def _at_home(self, task: int) -> dict[str, Tensor]:
        """Views of a task's home, by the names of its parameters."""
        found, start = {}, 0
        for layer, stacks in enumerate(self._stacks):
            for name in TENSORS:
                shape = stacks[name].shape[1:]
                found[f"{name}_{layer}"] = self._homes[task][start : start + shape.numel()].view(shape)
                start += shape.numel()
        return found

    @torch.no_grad()
    def _send_home(self, task: int) -> None:
        """Its parameters, the same objects, are tensors of the host now; nothing if they are."""
        rows = self.rows[task]
        for name, home in self._at_home(task).items():
            row = rows._parameters[name]
            assert row is not None
            if row.data_ptr() != home.data_ptr():
                home.copy_(row)
                row.grad = None
                row.data = home

    def _tie(self, fn: Callable[[Tensor], Tensor] | None = None) -> None:
        raise NotImplementedError  # rows are no views of the stacks

    # ------------------------------------------------------------------ computing

    def grouped(self, task: Any) -> Any:
        """The tasks of samples, integers [S], as :meth:`forward` takes them at the least cost: known to the
        host, for all layers. Waits for the device.

        Raises:
            IndexError: if there is no such task.
        """
        if not isinstance(task, Tensor):
            return task
        tasks = task.tolist()
        if tasks and not (min(tasks) >= -1 and max(tasks) < self.tasks):
            raise IndexError(
                f"task must be in [-1, {self.tasks}) for a bank of {self.tasks} tasks (-1: no adapter), got "
                f"values from {min(tasks)} to {max(tasks)}"
            )
        return TaskGroups(task, tasks, self.resident_tasks)

    @torch.no_grad()
    def prefetch(self, task: Any) -> None:
        """Begins to fetch what a pass over these samples needs first, at all layers."""
        groups = self.grouped(task)
        if not isinstance(groups, TaskGroups):
            return
        for layer, slots in enumerate(self._slots.layers):
            for part in groups.parts[:1]:
                with slots.lock:
                    self._fetch(layer, slots, part.tasks)

    def forward(
        self, layer: int, x: Tensor, task: int | Tensor | TaskGroups, residual: Tensor | None = None
    ) -> Tensor:
        """As :meth:`AdapterBank.forward`; ``task`` may be what :meth:`grouped` has made of it."""
        if isinstance(task, int):
            return super().forward(layer, x, task, residual)
        groups = self.grouped(task)
        if len(groups) != len(x):
            raise ValueError(f"task must have one entry for each of {len(x)} samples, got {len(groups)}")
        if torch.is_grad_enabled() or (self.training and self.dropout):
            return self._of_rows(layer, x, groups, residual)
        order = groups.order
        if order is not None:
            x = x.index_select(0, order)
            residual = None if residual is None else residual.index_select(0, order)
        out = [
            self._of_slots(layer, x[part.rows], part, None if residual is None else residual[part.rows])
            for part in groups.parts
        ]
        joined = out[0] if len(out) == 1 else torch.cat(out)
        return joined if order is None else joined.index_select(0, order.argsort())

    def _of_slots(self, layer: int, x: Tensor, part: Part, residual: Tensor | None) -> Tensor:
        slots = self._slots.layers[layer]
        with slots.lock:
            places = self._fetch(layer, slots, part.tasks)
            if x.is_cuda and slots.ready is not None:
                torch.cuda.current_stream(x.device).wait_event(slots.ready)
            table = torch.tensor([*places, -1], dtype=torch.int32).to(x.device, non_blocking=True)
            down, down_bias, up, up_bias = (self._stacks[layer][name] for name in TENSORS)
            index = table.index_select(0, part.local)
            out = gated_adapter(x, down, down_bias, up, up_bias, index, scale=self.scale, residual=residual)
            if x.is_cuda:
                done = torch.cuda.current_stream(x.device).record_event()
                for place in places:
                    slots.used[place] = done
        return out

    def _of_rows(self, layer: int, x: Tensor, groups: TaskGroups, residual: Tensor | None) -> Tensor:
        """From the tasks' own parameters, which gradients reach. A backward pass needs them as they are now:
        slots would have others by then."""
        place = {task: i for i, task in enumerate(groups.distinct)}
        index = torch.tensor([place.get(t, -1) for t in groups.tasks], dtype=torch.int32).to(x.device)
        down, down_bias, up, up_bias = (
            torch.stack([self._one(task, name, layer) for task in place])
            if place
            else self._stacks[layer][name][:0]
            for name in TENSORS
        )
        p = self.dropout if self.training else 0.0
        return gated_adapter(
            x, down, down_bias, up, up_bias, index, scale=self.scale, residual=residual, dropout_p=p
        )

    def _one(self, task: int, name: str, layer: int) -> Tensor:
        return self._row(task, name, layer).to(self.device)

    def _fetch(self, layer: int, slots: LayerSlots, tasks: tuple[int, ...]) -> list[int]:
        """The slots of these tasks, whose adapters are there, or will be when ``slots.ready`` is."""
        keys = [self._key(task, layer) for task in tasks]
        places, missing = slots.assign(keys)
        if not missing:
            return places
        stacks = self._stacks[layer]
        to = [stacks[name][places[i]] for i in missing for name in TENSORS]
        rows = [self._row(tasks[i], name, layer).detach() for i in missing for name in TENSORS]
        if self.device.type == "cuda":
            self._copy_aside(slots, to, rows, [places[i] for i in missing])
        else:
            torch._foreach_copy_(to, rows)
        for i in missing:
            slots.held[places[i]] = keys[i]
        return places

    def _copy_aside(self, slots: LayerSlots, to: list[Tensor], rows: list[Tensor], places: list[int]) -> None:
        """Copies by a stream of its own, once what is in these slots is no longer read."""
        if self._slots.stream is None:
            self._slots.stream = torch.cuda.Stream(self.device)
        stream = self._slots.stream
        if any(row.is_cuda for row in rows):  # the newest task's, which a step may have changed just now
            stream.wait_stream(torch.cuda.current_stream(self.device))
        for place in places:
            used = slots.used[place]
            if used is not None:
                stream.wait_event(used)
        with torch.cuda.stream(stream):
            torch._foreach_copy_(to, rows, non_blocking=True)
            slots.ready = stream.record_event()

    def _key(self, task: int, layer: int) -> tuple[Task, int]:
        """Of a row's values: writing into the row makes another one."""
        rows = self.rows[task]
        assert isinstance(rows, Task)
        of_layer = [rows.row(name, layer) for name in TENSORS]
        return rows, sum(0 if row.is_inference() else row._version for row in of_layer)

    # ------------------------------------------------------------------ moving, saving

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PagedAdapterBank:
        # The slots, and the newest task, go where fn has them; the others take on the dtype, and stay.
        before, dtype = self._homes, fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        with torch.no_grad():
            for stacks in self._stacks:
                for name in TENSORS:
                    stacks[name] = fn(stacks[name])
            self._slots.forget()
            self._homes = []
            while len(self._homes) < self.tasks:
                self._homes += self._more_homes(len(self._homes), dtype)
            for task in range(self.tasks):
                newest = task == self.tasks - 1
                away = newest and not self._is_home(task, before)
                for name, home in self._at_home(task).items():
                    row = self.rows[task]._parameters[name]
                    assert row is not None
                    self._move(row, fn if away else home.copy_, fn)
        return self

    def _is_home(self, task: int, homes: list[Tensor]) -> bool:
        first = self._row(task, TENSORS[0], 0)
        return task < len(homes) and first.data_ptr() == homes[task].data_ptr()

    @staticmethod
    def _move(row: nn.Parameter, values: Callable[[Tensor], Tensor], fn: Callable[[Tensor], Tensor]) -> None:
        grad, row.grad = row.grad, None
        row.data = values(row.data)
        if grad is not None:
            row.grad = fn(grad)

    def __getstate__(self) -> dict[str, Any]:
        # Frozen rows are made anew from their homes. Not views of them: each would be pickled with all.
        state = self.__dict__.copy()
        frozen = [t for t in range(self.tasks) if not self._row(t, TENSORS[0], 0).requires_grad]
        values = {t: torch.cat([r.detach().flatten() for r in self.rows[t].parameters()]) for t in frozen}
        return {**state, "_homes": [], "_values": values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values: dict[int, Tensor] = state.pop("_values")
        nn.Module.__setstate__(self, state)
        while len(self._homes) < self.tasks:
            self._homes += self._more_homes(len(self._homes), self.dtype)
        for task, flat in values.items():
            self._homes[task].copy_(flat)
            for name, home in self._at_home(task).items():
                self.rows[task].register_parameter(name, nn.Parameter(home, requires_grad=False))

    def _take_over(self, like: Tensor) -> None:
        self.to(like.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, resident_tasks={self.resident_tasks}, offload={self.offload!r}"
