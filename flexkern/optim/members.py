"""The groups of a metaplastic optimizer, and the slot of each parameter in them, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flexkern.optim import flexibilities, group_options
from flexkern.optim.partition import Partition
from flexkern.optim.scale import FirstItem
from flexkern.optim.sharded import is_sharded
from flexkern.optim.slot import Slot
from flexkern.spec.argument import shown

__all__ = ["OptimizerOfSlots", "check_params", "settings_of"]


def check_params(params: Any) -> None:
    """Raises TypeError if ``params`` is nothing that an optimizer can have parameters from."""
    kinds = "params must be parameters, named parameters or groups"
    if isinstance(params, nn.Module):
        raise TypeError(
            f"{kinds}, got the module {type(params).__name__}: pass its parameters() or named_parameters()"
        )
    if not isinstance(params, (Tensor, Iterable)) or isinstance(params, (str, dict)):
        raise TypeError(f"{kinds}, got {shown(params)}")


class OptimizerOfSlots(Optimizer):
    """An optimizer that knows the flexibility and the anchor of each parameter of its groups.

    They belong to the parameter and not to its place in a list: parameters may be put into the lists of
    ``param_groups`` and taken out by hand, and settings of a group may be changed.
    """

    _slots: dict[Tensor, Slot]
    _looked_at: dict[int, list[Any]]  # the settings of each group, by its identity, when they were last checked
    _names: dict[Tensor, str]  # of a model's parameters, where it was given
    _partition: Partition | None  # where other processes have the rest of the parameters

    def check_group(self, group: dict[str, Any]) -> None:
        """Checks the options and parameters of a group; makes plain numbers of its numbers.

        Raises:
            TypeError, ValueError: naming what does not fit.
        """
        group_options.check_synapses(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in :meth:`torch.optim.Optimizer.add_param_group`.

        In the group that results, ``flexibility`` and ``anchor`` are "each" where they were given for each
        parameter.

        Raises:
            TypeError, ValueError: if a value does not fit; the optimizer is then as it was before.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"param_group must be a dict with params, got {shown(param_group)}")
        params = param_group["params"]
        check_params(params)
        param_group = {**param_group, "params": params if isinstance(params, (Tensor, set)) else list(params)}
        if self._names:
            param_group["params"] = self._named(param_group["params"])
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        self.check_group(group)
        params = list(dict.fromkeys(group["params"]))
        slots = self._new_slots(group, params, group.get("param_names"))
        group |= {
            "flexibility": flexibilities.group_setting(group["flexibility"]),
            "anchor": flexibilities.group_setting(group["anchor"]),
            "measured_scale": 0.0,  # not measured
            "first_item": tuple(FirstItem()),
        }
        for slot in slots:
            slot.settings = settings_of(group)
            self._slots[slot.param] = slot
        self.param_groups.append(group)
        self._looked_at[id(group)] = list(group.values())

    def check_settings(self) -> None:
        """Looks at groups of which a setting was changed by hand since the last look. What tensors hold is not
        looked at again.

        Raises:
            TypeError, ValueError: naming what does not fit.
        """
        for group in self.param_groups:
            now, before = list(group.values()), self._looked_at.get(id(group), [])
            if len(now) != len(before) or not all(map(is_, now, before)):
                tensors = {n: group[n] for n in ("lr", "scale") if isinstance(group.get(n), Tensor)}
                for name, tensor in tensors.items():
                    group_options.check_number_tensor(tensor, name)
                self.check_group({**group, **dict.fromkeys(tensors, 1.0)})
                self._looked_at[id(group)] = now

    def _named(self, params: Any) -> list[Any]:
        params = [params] if isinstance(params, Tensor) else list(params)
        unknown = [p for p in params if isinstance(p, Tensor) and p not in self._names]
        if unknown:
            raise ValueError(
                f"params: a parameter of shape {tuple(unknown[0].shape)} is not one of model's; give the model "
                "that they belong to, or named parameters"
            )
        return [(self._names[p], p) if isinstance(p, Tensor) else p for p in params]

    def _new_slots(self, group: dict[str, Any], params: list[Tensor], names: list[str] | None) -> list[Slot]:
        if (names is None or len(names) != len(params)) and self._partition is not None:
            streams = self._partition.places(params)
        elif names is None or len(names) != len(params):
            positions = [
                slot.stream for slot in self._slots.values() if not flexibilities.is_named(slot.stream)
            ]
            first = max(positions, default=-1) + 1
            streams = list(range(first, first + len(params)))
        else:
            streams = [flexibilities.stream_of_name(name) for name in names]
        places = self._places(params)
        f = flexibilities.flexibilities_of(group, params, streams, places)
        anchors = flexibilities.anchors_of(group, params, places)
        return [Slot(*of_one) for of_one in zip(params, streams, f, anchors, strict=True)]

    def _places(self, params: list[Tensor]) -> list[int]:
        """Of the parameters of a group, their positions in it."""
        return list(range(len(params))) if self._partition is None else self._partition.places_in_group(params)

    def slots_of(self, group: dict[str, Any]) -> list[Slot]:
        """The slots of a group's parameters, in its order; one that was added to the list, or whose settings
        were changed in the group, gets what the group says.

        Raises:
            TypeError, ValueError: if that does not fit.
        """
        slots = [self._slots.get(p) for p in group["params"]]
        if None in slots:
            self._adopt(group)
            slots = [self._slots[p] for p in group["params"]]
        known: list[Slot] = [slot for slot in slots if slot is not None]
        now = settings_of(group)
        if any(slot.settings is not now and not _same(slot.settings, now) for slot in known):
            self._change(group, known)
        return known

    def _adopt(self, group: dict[str, Any]) -> None:
        """Parameters that were put into the group's list by hand."""
        new = [p for p in dict.fromkeys(group["params"]) if p not in self._slots]
        known = [self._slots[p] for p in group["params"] if p in self._slots]
        group_options.check_parameters(new)
        if not known and self._take_over(new, group):
            return
        given = dict(group)
        for name, of_known in (
            ("flexibility", [slot.flexibility for slot in known]),
            ("anchor", [slot.anchor for slot in known]),
        ):
            if flexibilities.is_each(group[name]):
                raise ValueError(
                    f"{name} was given for each parameter of the group, and a parameter of shape "
                    f"{tuple(new[0].shape)} was put into its list later; add it by add_param_group with its own"
                )
            given[name] = flexibilities.going_on(group[name], of_known)
        listed: dict[Tensor, str] = dict(zip(group["params"], group.get("param_names", ()), strict=False))
        if any(flexibilities.stream_of_name(listed.get(slot.param, "")) != slot.stream for slot in known):
            listed = {}  # names that were not changed with the list belong to others
        known_names = listed | self._names
        names = [known_names[p] for p in new if p in known_names]
        for slot in self._new_slots(given, new, names):
            slot.settings = settings_of(group)
            self._slots[slot.param] = slot

    def _take_over(self, new: list[Tensor], group: dict[str, Any]) -> bool:
        """Whether these are the parameters that the group had before a framework sharded them, and put the
        sharded ones into its list (accelerate); then they are what those were."""
        listed = {p for group in self.param_groups for p in group["params"]}
        gone = [p for p in self._slots if p not in listed and p not in self.state][: len(new)]
        if [p.shape for p in gone] != [p.shape for p in new] or not all(
            is_sharded(p) and not is_sharded(q) for p, q in zip(new, gone, strict=True)
        ):
            return False
        for p, q in zip(new, gone, strict=True):
            before = self._slots.pop(q)
            slot = Slot(p, before.stream, before.flexibility, before.anchor)
            slot.settings = before.settings
            self._slots[p] = slot
        return True

    def _change(self, group: dict[str, Any], slots: list[Slot]) -> None:
        """Settings of the group were changed by hand: they hold from now on."""
        params = [slot.param for slot in slots]
        fs: list[Any] = [slot.flexibility for slot in slots]
        anchors: list[Any] = [slot.anchor for slot in slots]
        if not flexibilities.is_each(group["flexibility"]):
            fs = flexibilities.flexibilities_of(
                group, params, [slot.stream for slot in slots], self._places(params)
            )
        if not flexibilities.is_each(group["anchor"]):
            anchors = flexibilities.anchors_of(group, params, self._places(params))
        now = settings_of(group)
        changed = [
            of_one for of_one in zip(slots, fs, anchors, strict=True) if not _same(of_one[0].settings, now)
        ]
        for slot, _, anchor in changed:
            if slot.has_begun and anchor != slot.anchor:
                raise ValueError(
                    f"anchor was changed to {group['anchor']!r}, but it is taken at a parameter's first step; "
                    "make a new optimizer to begin from other anchors"
                )
        group["flexibility"] = flexibilities.group_setting(group["flexibility"])
        group["anchor"] = flexibilities.group_setting(group["anchor"])
        for slot, f, anchor in changed:
            # Settings may be other objects that say the same: those of a group that was pickled.
            either_is_tensor = isinstance(f, Tensor) or isinstance(slot.flexibility, Tensor)
            if f is not slot.flexibility and (either_is_tensor or f != slot.flexibility):
                slot.flexibility = f
                state = self.state.get(slot.param)
                if state:
                    state["flexibility"] = flexibilities.plain(f)
                    if "alpha_item" in state:
                        state["alpha_item"] = 0  # alpha is taken anew
            slot.anchor, slot.settings = anchor, settings_of(group)


def settings_of(group: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What the slots of a group are made from."""
    return group["flexibility"], group["anchor"], group["seed"]


def _same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))
