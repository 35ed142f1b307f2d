"""The scale of the flexible update: accuracy against it, over stream lengths, widths and learning rates.

    python -m studies.scale_study --data mnist.npz --out docs/results/metaplasticity/scale-study

It is run as the experiments of :mod:`flexkern.runs.metaplasticity` are, with the same options. How good the
automatic scale is over more kinds of settings, ``studies.auto_scale`` says.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flexkern.runs.metaplasticity.claims import check, claim
from flexkern.runs.metaplasticity.protocol import Network, Protocol
from flexkern.runs.metaplasticity.records import accuracy, by_network
from flexkern.runs.metaplasticity.schedule import Experiment
from flexkern.runs.statistics import describe

__all__ = ["ScaleStudy", "Setting", "application", "main"]

AUTO = "auto"
_CLOSE = 0.9  # of the best scale's accuracy: what a rule must reach to be said to serve


@dataclass(frozen=True)
class Setting:
    """What the best scale may depend on."""

    items: int
    width: int
    lr: float

    def __str__(self) -> str:
        return f"{self.items} items, width {self.width}, lr {self.lr:g}"


@dataclass(frozen=True)
class ScaleStudy(Experiment):
    """The stream once by hybrid networks of many scales; and by "auto", which measures its own.

    Each setting differs from the protocol in one respect: another width, another learning rate, and each of
    these with each stream length.

    Args:
        lengths: items of the streams.
        scales: tried, several decades.
        widths, lrs: relative to the protocol's, tried one at a time.
    """

    lengths: tuple[int, ...] = (10, 30)
    scales: tuple[float, ...] = tuple(float(f"{10**e:.3g}") for e in np.arange(2.0, 5.6, 0.5))
    widths: tuple[float, ...] = (0.25,)
    lrs: tuple[float, ...] = (0.2,)

    name: ClassVar[str] = "scale-study"
    title: ClassVar[str] = "Accuracy against the scale of the flexible update"

    @classmethod
    def command(cls) -> str:
        return "python -m studies.scale_study"

    def settings(self, protocol: Protocol) -> list[Setting]:
        """What is tried."""
        widths = [protocol.width, *(max(1, round(w * protocol.width)) for w in self.widths)]
        pairs = [(w, protocol.lr) for w in widths] + [(protocol.width, r * protocol.lr) for r in self.lrs]
        return [Setting(n, w, lr) for n, (w, lr) in itertools.product(self.lengths, pairs)]

    def networks(self, protocol: Protocol) -> Mapping[str, Network]:
        return {
            f"{setting}, scale {scale if scale == AUTO else format(scale, 'g')}": Network(
                changes=(*dataclasses.asdict(setting).items(), ("scale", scale))
            )
            for setting in self.settings(protocol)
            for scale in (*self.scales, AUTO)
        }

    def summarise(self, records: Sequence[dict[str, Any]], protocol: Protocol) -> dict[str, Any]:
        of = by_network(records)
        curves: dict[Setting, np.ndarray] = {}
        autos: dict[Setting, np.ndarray] = {}
        measures: dict[str, Any] = {}
        for setting in self.settings(protocol):
            curve = np.stack(
                [accuracy(of[f"{setting}, scale {s:g}"], "stream")[:, -1].mean(1) for s in self.scales], 1
            )
            auto = of[f"{setting}, scale {AUTO}"]
            curves[setting], autos[setting] = curve, accuracy(auto, "stream")[:, -1].mean(1)
            best = int(curve.mean(0).argmax())
            measures[str(setting)] = {
                **dataclasses.asdict(setting),
                "curve": describe(curve),
                "best_scale": self.scales[best],
                "best": round(float(curve.mean(0)[best]), 4),
                "auto": describe(autos[setting]),
                "auto_scale": float(f"{np.exp(np.mean(np.log([r['scale'] for r in auto]))):.4g}"),
            }
        one = {s: float(np.mean([c.mean(0)[k] / c.mean(0).max() for c in curves.values()]))
               for k, s in enumerate(self.scales)}  # fmt: skip
        best_for_all = max(one, key=lambda s: one[s])
        k = self.scales.index(best_for_all)
        return {
            "measures": measures,
            "scales": list(self.scales),
            "one_scale": {"scale": best_for_all, "mean_share_of_best": round(one[best_for_all], 3)},
            "claims": [
                claim(
                    "one rule for all",
                    "Not in the paper, which sets the scale by hand: 'auto' serves short and long streams.",
                    [
                        check(f"{s}: 'auto' above 90 % of the best scale", autos[s] - _CLOSE * _best(c))
                        for s, c in curves.items()
                    ],
                ),
                claim(
                    "one scale for all",
                    f"Not in the paper: one fixed scale, {best_for_all:g}, the best over all settings, serves.",
                    [
                        check(
                            f"{s}: scale {best_for_all:g} above 90 % of the best", c[:, k] - _CLOSE * _best(c)
                        )
                        for s, c in curves.items()
                    ],
                ),
            ],
        }


def _best(curve: np.ndarray) -> np.ndarray:
    """[seeds]: accuracy at the scale that is best on average, which is known only afterwards."""
    return curve[:, curve.mean(0).argmax()]


def application() -> Any:
    """The command line, with the options that the experiments of ``flexkern run`` have."""
    # Here, for the processes that train networks import this module, too.
    import typer

    from flexkern.cli.metaplasticity import add_to
    from studies.scale_tables import register

    register()
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    add_to(app, [ScaleStudy])
    return app


def main() -> None:
    """Runs the study, or goes on with it."""
    application()(prog_name=ScaleStudy.command())


if __name__ == "__main__":
    main()
