"""What a learner looks like where Python shows it: a line."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import nn

from flexkern.learners import schema
from flexkern.learners.mlp.reserve import Reserve
from flexkern.spec.argument import shown

__all__ = ["options_that_differ", "representation"]

# Said in words, or worked out from the backbone.
_LEFT_OUT = ("input_shape", "classes", "normalize", "recipe")


def options_that_differ(learner: Any) -> dict[str, Any]:
    """The options of a learner that are not the defaults of its class; those of its recipe by their names."""
    defaults = {name: default for name, (_, default) in schema.arguments(type(learner)).items()}
    if "reserve" in defaults:  # whose fields are options, too
        defaults |= asdict(Reserve())
    given = learner.configuration()
    differ = {
        name: value for name, value in given.items()
        if name not in _LEFT_OUT and name in defaults and not _same(value, defaults[name])
    }  # fmt: skip
    recipe = given.get("recipe")
    if recipe is not None:
        usual = type(learner).default_recipe()
        names = [field.name for field in fields(usual)]
        differ |= {n: recipe[n] for n in names if n in recipe and not _same(recipe[n], getattr(usual, n))}
    return differ


def _same(value: Any, default: Any) -> bool:
    """Whether an option as JSON is the default."""
    if default is None and value == {}:
        return True
    return bool(value == (list(default) if isinstance(default, tuple) else default))


def representation(learner: Any, network: nn.Module | None) -> str:
    """Class, method, what it learns on, how far it is, and the options that differ.

    Args:
        learner: whose constructor has ended.
        network: the frozen one that it was given.
    """
    given = learner.configuration()
    parts = [repr(learner._method_name())]
    if learner.family == "mlp":
        parts.append(f"on {given.get('input_shape')} inputs")
    if network is not None:
        name = learner._frozen_name
        parts.append(f"on {'backbone ' + shown(name) if name is not None else type(network).__name__}")
    items = learner.items_learned
    progress = [f"{items} {'item' if items == 1 else 'items'} learned"]
    if learner._begun is not None:
        progress.append(f"{shown(learner._begun.get('name'))} begun")
    classes = getattr(learner, "classes_seen", given.get("classes"))
    progress.append(f"{classes} classes")
    options = ", ".join(f"{name}={shown(value)}" for name, value in options_that_differ(learner).items())
    text = f"{type(learner).__name__} {' '.join(parts)}, {', '.join(progress)}"
    return f"<{text}{'; ' if options else ''}{options}>"
