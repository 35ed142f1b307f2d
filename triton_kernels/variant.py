"""What a module of kernels says of each kernel that the compiler ahead of time and the tuner are to know.

A module with kernels defines, after its last function, what :mod:`.catalogue` looks for:

``ahead_of_time() -> Iterable[Variant]``
    all that launches may ask the compiler for. A test records launches and compares.
``CANDIDATES``
    (kernel, variant) of the tuning table to configurations that are worth a try. It may be left out, and so may
    the kernel in the tuning table: it then has the row of "other".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flexkern.backends import tuning

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """A kernel with its constexpr arguments: what one compilation at run time makes.

    Args:
        name: for reports.
        kernel: a triton.JITFunction.
        constants: its constexpr arguments, but for those that :meth:`at` adds.
        tuned: kernel and variant in the tuning table; None: ``options`` are all there is.
        options: what the compiler is told.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    tuned: tuple[str, str] | None = None
    options: dict[str, int] = field(default_factory=dict)

    def configuration(self, architecture: str) -> dict[str, int] | None:
        """What the tuning table has for it; None if it is not in there."""
        if self.tuned is None:
            return None
        return tuning.config(*self.tuned, architecture, bounded=self.constants.get("ALIGNED", True))

    def at(self, architecture: str) -> Variant:
        """This variant as it is launched on an architecture, as the tuning table names it."""
        configuration = self.configuration(architecture)
        return self if configuration is None else self.cut(configuration)

    def cut(self, configuration: Mapping[str, int]) -> Variant:
        """This variant in a configuration as the tuning table has them."""
        wanted = {p.name for p in self.kernel.params if p.is_constexpr} - self.constants.keys()
        cuts = {name.upper(): value for name, value in configuration.items() if name.upper() in wanted}
        if "STAGES" in wanted:
            cuts["STAGES"] = configuration["num_stages"]
        return replace(
            self, constants=self.constants | cuts, options=tuning.launch_options(configuration), tuned=None
        )

    def signature(self) -> dict[str, str]:
        """Parameter name to type. All are annotated and none is specialised, so a variant is compiled once."""
        return {p.name: "constexpr" if p.is_constexpr else p.annotation_type for p in self.kernel.params}
