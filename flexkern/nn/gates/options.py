"""The options of :class:`flexkern.nn.SynapseGate`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flexkern.nn.feature_statistics import checked_shrinkage
from flexkern.nn.gates.calibration import CALIBRATIONS
from flexkern.nn.gates.detectors import DETECTORS
from flexkern.nn.gates.negatives import NEGATIVES
from flexkern.nn.gates.thresholds import THRESHOLDS, SlidingThreshold
from flexkern.nn.heads.ridge import checked_ridge
from flexkern.plain import choice, flag, number, whole_number

__all__ = ["GATES", "GATINGS", "GateOptions"]

GATES = ("mlp", "none", "oracle", *DETECTORS)
GATINGS = ("hard", "soft", "topk")
_COUNTS = ("hidden", "epochs", "batch", "neighbours")
_INTEGER = "an integer"


@dataclass(frozen=True)
class GateOptions:
    """How the artificial synapses of :class:`flexkern.nn.SynapseGate` decide, and how they learn to.

    Args:
        gate: what scores the tasks. ``"mlp"``: a two-layer MLP for each task, trained to tell the task's
            features (1) from those of all other tasks so far (0). ``"none"``: all synapses are open (EASE).
            ``"oracle"``: the true task's is open, which nobody knows outside of a test. Or a detector of
            :mod:`flexkern.nn.gates.detectors`: ``"energy"``, ``"mahalanobis"``, ``"knn"``,
            ``"likelihood_ratio"``, ``"ridge"``, ``"lda"``.
        gating: ``"hard"``: 1 where evidence >= threshold; ``"soft"``: sigmoid(evidence), thresholds not used;
            ``"topk"``: hard, but only the ``k`` largest (lateral inhibition), or with ``fill`` the k largest
            whether over their thresholds or not.
        k: open synapses of a sample at most, at least 1, for topk (None: 2) and for soft (None: no limit; the
            others are 0).
        fill: see ``gating``.
        negatives: what stands for other tasks' data, and for the own where that is gone: ``"gaussian"`` or
            ``"replay"``, see :mod:`flexkern.nn.gates.negatives`. With replay, features of samples are kept.
        positives: for an MLP of the newest task with gaussian negatives: ``"data"``, or ``"gaussian"``, drawn
            as the negatives are, so that it cannot learn to tell data from draws.
        keep: features kept of each class, by replay and knn, at least 1.
        threshold: ``"fixed"``: ``theta``; ``"quantile"``: the largest that opens on ``target`` of held-out data
            of the own task (later, when a gate changes, on what stands for that data); ``"adaptive"``: slides
            until other tasks' data opens it at rate ``target``, see
            :class:`flexkern.nn.gates.thresholds.SlidingThreshold`: earlier gates slide on the data of each new
            task, the newest on what stands for the earlier tasks' data.
        theta: the fixed threshold, and where an adaptive one starts: a probability, in (0, 1).
        target: see ``threshold``, in (0, 1). None: 0.95 for quantile, else 0.1.
        gain, low, high: of the adaptive threshold, in logits.
        refresh: at each new task all gates are trained (from where they are), calibrated and, with
            ``"quantile"``, set again, each against all other tasks. Without it only the newest is. Detectors
            whose scores move with every task (mahalanobis, likelihood_ratio, ridge), and softmax, are
            calibrated and set again in any case.
        first: the first task has no other to be told from, so its gate is open until a second task comes. Then
            it is trained too, on what stands for its data (``"trained"``), or, as the paper may be read, stays
            open until a ``refresh`` (``"open"``).
        hidden: units of an MLP's hidden layer.
        epochs: of training an MLP, by AdamW with a cosine schedule to 0.
        inputs: what an MLP sees while training: h0 ``"standard"``ised, or ``"whitened"``, see
            :class:`flexkern.nn.gates.mlp.Scaling`.
        lr: of AdamW; > 0.
        weight_decay: of AdamW; >= 0.
        batch: positives in each step, and as many negatives; also samples in each step of an adaptive
            threshold.
        holdout: share of each class's data, in (0, 1), held out of learning where calibration or quantile needs
            it. It joins the running sums afterwards.
        calibration: how scores become logits. ``"platt"``: a logistic regression for each gate; ``"softmax"``:
            a softmax over the tasks with one temperature, so that gates compete; ``"none"``: as they are. None:
            softmax for ridge, none for lda, platt for the other detectors, else none.
        neighbours: of knn.
        features, ridge: of the ridge head, see :class:`flexkern.nn.RidgeHead`.
        layers: of the lda gate: h0 is the tokens of so many layers, of which it selects the last ones, see
            :class:`flexkern.nn.SelectedLDA`.
        shrinkage: of the shared covariance, see :class:`flexkern.nn.FeatureStatistics`; the lda gate selects
            it, unless it is a number.
        seed: of everything that is drawn. The same seed and data give the same bits on the same device.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: arXiv 2410.05899, whose gates are ``gate="mlp"``, ``gating="hard"``, ``threshold="fixed"``; the
    others are described in docs/design.md, Artsy.
    """

    gate: str = "mlp"
    gating: str = "hard"
    k: int | None = None
    fill: bool = False
    negatives: str = "gaussian"
    positives: str = "data"
    keep: int = 20
    threshold: str = "fixed"
    theta: float = 0.5
    target: float | None = None
    gain: float = 0.5
    low: float = -8.0
    high: float = 8.0
    refresh: bool = False
    first: str = "trained"
    hidden: int = 64
    epochs: int = 2
    inputs: str = "standard"
    lr: float = 1e-2
    batch: int = 48
    weight_decay: float = 1e-2
    holdout: float = 0.2
    calibration: str | None = None
    neighbours: int = 5
    features: int = 2000
    ridge: float | str = "auto"
    layers: int = 1
    shrinkage: float | str = "oas"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("gate", GATES),
            ("gating", GATINGS),
            ("positives", ("data", "gaussian")),
            ("inputs", ("standard", "whitened")),
            ("threshold", THRESHOLDS),
            ("first", ("trained", "open")),
            ("negatives", NEGATIVES),
        ):
            choice(getattr(self, name), name, choices)
        if self.calibration is not None and self.calibration not in CALIBRATIONS:
            raise ValueError(f"calibration must be one of {CALIBRATIONS} or None, got {self.calibration!r}")
        for name in _COUNTS:
            self._set(name, whole_number(getattr(self, name), name, kind=_INTEGER))
        self._set("keep", whole_number(self.keep, "keep", kind=_INTEGER))
        self._set("seed", whole_number(self.seed, "seed", least=None, most=None, kind=_INTEGER))
        for name in ("theta", "holdout"):
            self._set(name, number(getattr(self, name), name, 0, 1, above=True, below=True))
        self._set("lr", number(self.lr, "lr", 0, above=True))
        self._set("weight_decay", number(self.weight_decay, "weight_decay", 0))
        for name in ("gain", "low", "high"):
            self._set(name, number(getattr(self, name), name))
        if self.target is not None:
            rate = number(self.target, "target", 0, 1, above=True, below=True, kind="a rate in (0, 1)")
            self._set("target", rate)
        for name in ("fill", "refresh"):
            self._set(name, flag(getattr(self, name), name))
        self._check_k()
        self._set("shrinkage", checked_shrinkage(self.shrinkage))
        features = whole_number(self.features, "features", least=0, kind=_INTEGER)
        self._set("features", features)
        self._set("ridge", checked_ridge(self.ridge))
        self._set("layers", whole_number(self.layers, "layers", kind=_INTEGER))
        self.sliding()

    def _set(self, name: str, value: object) -> None:
        """A field as a plain Python value."""
        object.__setattr__(self, name, value)

    def _check_k(self) -> None:
        if self.k is not None and self.gating == "hard":
            raise ValueError(f"k={self.k} limits open synapses with gating 'topk' or 'soft'; gating is 'hard'")
        if self.k is not None:
            kind = "an integer of at least 1"
            self._set("k", whole_number(self.k, "k", least=None, kind=kind))
            if self.k < 1:
                raise ValueError(f"k must be {kind}, got {self.k}")
        if self.fill and self.gating != "topk":
            raise ValueError(f"fill opens the k best with gating 'topk'; gating is {self.gating!r}")

    def filled(self) -> GateOptions:
        """The same options with values where None stands for one: ``k``, ``target``, ``calibration``."""
        calibration = self.calibration
        if calibration is None:
            own = {"ridge": "softmax", "lda": "none"}
            calibration = own.get(self.gate, "platt" if self.gate in DETECTORS else "none")
        return replace(
            self,
            k=2 if self.k is None and self.gating == "topk" else self.k,
            target=self.target_rate(),
            calibration=calibration,
        )

    def target_rate(self) -> float:
        """``target``, or its default for this ``threshold``."""
        return self.target if self.target is not None else 0.95 if self.threshold == "quantile" else 0.1

    def sliding(self) -> SlidingThreshold | None:
        """The rule of adaptive thresholds; None for others."""
        if self.threshold != "adaptive":
            return None
        return SlidingThreshold(self.target_rate(), self.gain, self.low, self.high)
