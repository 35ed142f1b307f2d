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
        tuned: kernel and variant in the tuning table; None: ``fixed`` or ``options`` are all there is.
        fixed: a configuration that is not in the table.
        options: what the compiler is told.
        descriptors: the types of parameters that are tensor descriptors, with constants in braces:
            "tensordesc<fp32[{OUT}, 16]>".
        forms: what is launched in its place where a configuration has such a key.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    tuned: tuple[str, str] | None = None
    fixed: Mapping[str, int] | None = None
    options: dict[str, int] = field(default_factory=dict)
    descriptors: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, Variant] = field(default_factory=dict)

    def configuration(self, architecture: str) -> dict[str, int] | None:
        """What the tuning table has for it; None if it is neither in there nor fixed."""
        if self.tuned is None:
            return None if self.fixed is None else dict(self.fixed)
        return tuning.config(*self.tuned, architecture, bounded=self.constants.get("ALIGNED", True))

    def at(self, architecture: str) -> Variant:
        """This variant as it is launched on an architecture, as the tuning table names it."""
        configuration = self.configuration(architecture)
        return self if configuration is None else self.cut(configuration)

    def cut(self, configuration: Mapping[str, int]) -> Variant:
        """This variant, or the form that is asked for, in a configuration as the tuning table has them."""
        for key, form in self.forms.items():
            if key in configuration:
                return form.cut(configuration)
        wanted = {p.name for p in self.kernel.params if p.is_constexpr} - self.constants.keys()
        cuts = {name.upper(): value for name, value in configuration.items() if name.upper() in wanted}
        if "STAGES" in wanted:
            cuts["STAGES"] = configuration["num_stages"]
        return replace(
            self,
            constants=self.constants | cuts,
            options=tuning.launch_options(configuration),
            tuned=None,
            fixed=None,
        )

    def signature(self) -> dict[str, str]:
        """Parameter name to type. All but descriptors are annotated, and none is specialised, so a variant is
        compiled once."""
        return {
            p.name: "constexpr" if p.is_constexpr else p.annotation_type or self._descriptor(p.name)
            for p in self.kernel.params
        }

    def _descriptor(self, name: str) -> str:
        return self.descriptors[name].format(**self.constants)
