"""Every operator and every rule, declared once: a file for each family, found by its name.

Needs neither torch nor anything else of flexkern: the build reads it too.
"""

import importlib
import pkgutil

from .argument import Argument
from .declare import SPECS
from .record import Arguments, Spec
from .rules import RULES, Rule

__all__ = ["RULES", "SPECS", "Argument", "Arguments", "Rule", "Spec"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
