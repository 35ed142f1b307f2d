"""The LDA head: learning against the product that bounds it, and features to W against other ways there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flexkern.benchmarks.case import (
    CPU,
    GPU,
    Comparison,
    Goal,
    Peer,
    Setting,
    Skip,
    Work,
    at_most,
    case,
    faster,
)
from flexkern.nn import LDAHead

SKLEARN, WHOLE = (
    "LinearDiscriminantAnalysis of scikit-learn (lsqr)",
    "torch.linalg on the whole covariance, float64",
)
PRODUCT = "torch.addmm(S, x.T, x)"
RHO = 0.1
# The head centres rows and computes half of x^T x: wanted at so much of the library's rate on the whole.
RATE, RATE_SMALL = 0.7, 0.6
LARGE = "FLEXKERN_BENCH_LARGE"


class Features:
    """Random features of gaussian classes, and who learns them."""

    def __init__(self, at: Setting, rows: int, width: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(classes, (rows,), generator=generator)
        means = torch.randn((classes, width), generator=generator)
        x = torch.randn((rows, width), generator=generator).add_(means[self.labels], alpha=0.5).add_(3)
        self.x, self.labels, self.classes = x.to(at.device), self.labels.to(at.device), classes
        self.title = f"{rows:,} features of {width:,} values, {classes:,} classes{at.suffix()}"

    def head(self) -> LDAHead:
        return LDAHead(self.x.shape[1], shrinkage=RHO, device=self.x.device)

    def weights(self) -> Tensor:
        """Ours, from nothing to W."""
        head = self.head()
        head.update(self.x, self.labels)
        return head.solve()

    def whole(self) -> Tensor:
        """The same as anybody would write it."""
        means, covariance = self.moments()
        d = len(covariance)
        shrunk = (1 - RHO) * covariance + RHO * covariance.trace() / d * torch.eye(d, device=covariance.device)
        factor = torch.linalg.cholesky(shrunk)
        return torch.cholesky_solve((means - means.mean(0)).T, factor)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Class means and shared covariance, from sums of x x^T in float64."""
        x = self.x.double()
        one_hot = torch.nn.functional.one_hot(self.labels, self.classes).double()
        count = one_hot.sum(0)[:, None]
        means = one_hot.T @ x / count
        return means, (x.T @ x - (means * count).T @ means) / (len(x) - self.classes)

    def sklearn(self) -> Callable[[], Any]:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        x, labels = self.x.cpu().numpy(), self.labels.cpu().numpy()
        return partial(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=RHO).fit, x, labels)

    def agree(self, weight: Tensor) -> None:
        """W in float32: its own rounding and that of the scatter, times the condition, at most width / RHO."""
        ours = self.weights().double()
        error = float((ours - weight.to(ours)).norm() / ours.norm())
        assert error < 1e-3, f"W differs by {error:.2g} of its norm"

    def sklearn_agrees(self) -> None:
        """W of scikit-learn is not centred, and divides by n."""
        fitted = self.sklearn()()
        weight = torch.from_numpy(fitted.coef_.T) * (1 - self.classes / len(self.x))
        centred = weight - weight.mean(1, keepdim=True)
        self.agree(centred)


@case("lda/fit", devices=(CPU, GPU))
def fit(at: Setting) -> Comparison:
    features = Features(at, at.size(4096, 300), at.size(768, 40), at.size(100, 4))
    peers = [Peer(WHOLE, features.whole, lambda: features.agree(features.whole()), faster(1.5))]
    with contextlib.suppress(ImportError):
        peers.append(Peer(SKLEARN, features.sklearn(), features.sklearn_agrees, faster(5)))
    rows, width = features.x.shape
    work = Work(4 * rows * width, rows * width**2 + width**3 // 3 + 2 * width**2 * features.classes)
    title = f"LDA from features to W, {features.title}"
    # After scikit-learn its threads go on turning for a while, beside those of the next call: 3 times its time.
    return Comparison(title, features.weights, peers, work, steady=True)


def half(rate: float) -> Goal:
    return at_most(1 / (2 * rate))


def learning(features: Features, goal: Goal) -> Comparison:
    """Batches of 1,024 into a head that has seen all classes."""
    head = features.head()
    x, labels = features.x, features.labels
    gram = torch.zeros_like(head.scatter[0])

    def learn() -> None:
        head.update(x, labels)

    def product() -> None:
        for rows in x.split(1024):
            gram.addmm_(rows.T, rows)

    learn()
    rows, width = x.shape
    peers = [
        Peer(PRODUCT, product, "the product alone is no LDA: the bound of what learning can take", goal),
    ]
    work = Work(4 * (rows * width + width**2), rows * width**2)
    told = f"{head.memory_bytes / 2**20:.0f} MiB are kept"
    return Comparison(f"LDA learns {features.title}", learn, peers, work, note=told)


@case("lda/learn", devices=(CPU, GPU))
def learn(at: Setting) -> Comparison:
    return learning(Features(at, at.size(4096, 100), at.size(1536, 40), at.size(100, 4)), half(RATE_SMALL))


@case("lda/learn-large", devices=(CPU, GPU))
def learn_large(at: Setting) -> Comparison:
    """Six layers of ViT-B/16's tokens, 1,000 classes; 100,000 images take 100,000 / 4,096 times as long."""
    if at.device == CPU and not at.quick and not os.environ.get(LARGE):
        raise Skip(f"takes minutes and 2 GB; {LARGE}=1 runs it")
    return learning(Features(at, at.size(4096, 120), at.size(9216, 48), at.size(1000, 20)), half(RATE))
