"""Attacks on the training data of an item: pure functions from an experience to a poisoned one.

The paper (arXiv 2407.07133, Fig. 4) has one attack: after passes over the right items comes one pass in which
the images of an item carry the label of another. The release shuffles the labels without excluding fixed
points, so some items stay right. :func:`deranged_labels` with :func:`derangement` is that attack, with every
item wrong. The other three are ours: labels flipped at a rate, foreign inputs under the item's label, and noise
on the features.

The *target images* of an experience are the training inputs whose label is the experience's number. Only they
are attacked; what is told of other items' images stays, and test inputs and labels, the truth, are the same
tensors. So an attack wants one item an experience, rightly labelled, as in
:func:`flexkern.streams.two_digit_stream`; where there is no such image it raises, because the experiment would
report an attack that never happened. The name and number stay, too: a learner that resumes knows the item by
its name.

The same arguments give the same bits; no global random state is read or changed. With one seed a higher rate
attacks the images that a lower rate attacks, in the same way, and more, so that rates can be compared pairwise.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import number, whole_number
from flexkern.streams.base import Experience

__all__ = ["deranged_labels", "derangement", "flipped_labels", "foreign_inputs", "perturbed_inputs"]

# What a random generator is for: the first number of its seed, apart from those of two_digit.py.
_FLIP, _FOREIGN, _NOISE = range(100, 103)


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation of 0..n-1 without a fixed point, int64 [n], each of them equally likely.

    Random permutations are drawn until one has no fixed point. Whatever has equal chances before a rejection
    has them after it, which repairing the fixed points of one permutation would not give. It takes e = 2.72
    tries on average: of the n! permutations the share 1 - 1/1! + 1/2! - ... +- 1/n! has no fixed point
    (inclusion and exclusion), the series of 1/e, met within 1/(n+1)!; and an event of chance p takes 1/p tries.

    Raises:
        ValueError: if n < 2; a single item has no other place.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, or there is no permutation without a fixed point; got {n}")
    while True:
        permutation = rng.permutation(n)
        if (permutation != np.arange(n)).all():
            return permutation


def deranged_labels(experience: Experience, permutation: np.ndarray) -> Experience:
    """All target images carry the label ``permutation[number]`` of another item (the paper's attack).

    Args:
        experience: with at least one target image.
        permutation: of the labels of the whole stream, without a fixed point, integers [classes]; one
            permutation serves all items of a pass, see :func:`derangement`.

    Raises:
        TypeError: if the permutation does not hold integers.
        ValueError: if it is no permutation, has a fixed point or has no place for the item, or there is no
            target image.
    """
    permutation = np.asarray(permutation)
    if permutation.dtype.kind not in "iu":
        raise TypeError(f"permutation must hold integers, got {permutation.dtype}")
    if permutation.ndim != 1 or not np.array_equal(np.sort(permutation), np.arange(permutation.size)):
        raise ValueError(
            f"permutation must hold each of 0, 1, ..., n - 1 once, got shape {permutation.shape}: {permutation}"
        )
    fixed = np.flatnonzero(permutation == np.arange(permutation.size))
    if fixed.size:
        raise ValueError(
            f"permutation must have no fixed point, or items {fixed.tolist()} stay right; derangement() makes "
            "one that has none"
        )
    _check_classes(experience, permutation.size, "permutation: its length")
    target = _target(experience)
    labels = experience.train_labels.clone()
    labels[target] = int(permutation[experience.number])
    return dataclasses.replace(experience, train_labels=labels)


def flipped_labels(experience: Experience, rate: float, classes: int, *, seed: int) -> Experience:
    """``round(rate * count)`` of the ``count`` target images carry a random label that is not the item's.

    Which images is random, how many is exact (halves round to even). Each of the other ``classes - 1`` labels
    is equally likely, for each image alone.

    Args:
        experience: with at least one target image.
        rate: share of the target images, 0 to 1.
        classes: labels of the whole stream, at least 2.
        seed: any integer >= 0. Items of one seed have random numbers of their own.

    Raises:
        TypeError, ValueError: if an argument is outside its range, or there is no target image.
    """
    classes = whole_number(classes, "classes", least=None)
    if classes < 2:
        raise ValueError(f"classes must be at least 2, or there is no other label; got {classes}")
    _check_classes(experience, classes, "classes")
    target = _target(experience)
    count = _count(rate, target)
    rng = _generator(_FLIP, seed, experience)
    # Chosen and drawn for all of them, whatever the rate: so a higher rate keeps the flips of a lower one.
    order = torch.from_numpy(rng.permutation(len(target)))
    steps = torch.from_numpy(rng.integers(1, classes, len(target)))
    labels = experience.train_labels.clone()
    # 1 to classes - 1 places on, around the end: any label but its own.
    labels[target[order[:count]]] = ((experience.number + steps[:count]) % classes).to(labels.device)
    return dataclasses.replace(experience, train_labels=labels)


def foreign_inputs(experience: Experience, foreign: Tensor, rate: float, *, seed: int) -> Experience:
    """``round(rate * count)`` of the ``count`` target images are foreign inputs; their label stays the item's.

    Which images is random, how many is exact (halves round to even). The foreign inputs are drawn without
    replacement within the item; two items draw apart from each other, so they may share some.

    Args:
        experience: with at least one target image.
        foreign: [m, ...], inputs that belong to no item of the stream; shape of one input and dtype as in
            ``experience.train_inputs``.
        rate: share of the target images, 0 to 1.
        seed: any integer >= 0. Items of one seed have random numbers of their own.

    Raises:
        TypeError, ValueError: if an argument is outside its range, foreign inputs are not like the item's or
            too few, or there is no target image.
    """
    inputs = _in_memory(experience)
    if not isinstance(foreign, Tensor):
        raise TypeError(f"foreign must be a tensor, got {type(foreign).__name__}")
    if foreign.ndim < 1 or foreign.shape[1:] != inputs.shape[1:] or foreign.dtype != inputs.dtype:
        raise ValueError(
            f"foreign must be like the experience's inputs ({inputs.dtype}, [m, ...] of "
            f"{experience.input_shape} each), got {foreign.dtype}, {tuple(foreign.shape)}"
        )
    target = _target(experience)
    count = _count(rate, target)
    if count > len(foreign):
        raise ValueError(
            f"foreign has {len(foreign)} inputs, but rate {rate} of {len(target)} target images needs {count}: "
            "pass more of them, or lower the rate"
        )
    rng = _generator(_FOREIGN, seed, experience)
    if not count:
        return dataclasses.replace(experience)
    order = torch.from_numpy(rng.permutation(len(target)))[:count]
    drawn = torch.from_numpy(rng.permutation(len(foreign)))[:count]
    inputs = inputs.clone()
    inputs[target[order]] = foreign[drawn].to(inputs.device)
    return dataclasses.replace(experience, train_inputs=inputs)


def perturbed_inputs(experience: Experience, size: float, *, seed: int) -> Experience:
    """All target inputs carry Gaussian noise, ``size`` times as large as the spread within the item.

    The spread is one number, the root mean square over all target inputs and features of the deviation from
    the item's mean input. So with size 1 an input moves as far from where it was as it was from the mean, both
    in the root mean square. The noise is drawn in float32, the same for each size but for the factor; the
    result has the inputs' dtype and is not clipped to any range.

    Args:
        experience: floating inputs (features), with at least one target image.
        size: of the noise in spreads of the item, finite, >= 0.
        seed: any integer >= 0. Items of one seed have random numbers of their own.

    Raises:
        TypeError: if the inputs are not a floating tensor.
        ValueError: if an argument is outside its range, there is no target image, the spread is 0 or not
            finite, or the result would not be finite.
    """
    inputs = _in_memory(experience)
    if not inputs.is_floating_point():
        raise TypeError(
            f"experience: noise needs floating inputs, these are {inputs.dtype}; take features first "
            "(flexkern.features.extract), or divide images by 255"
        )
    size = number(size, "size", 0, kind="finite and at least 0")
    target = _target(experience)
    rng = _generator(_NOISE, seed, experience)
    if size == 0:
        return dataclasses.replace(experience)
    clean = inputs[target]
    # Summed by NumPy: the order of torch's sums, and so their last bits, may follow the number of threads.
    spread = math.sqrt(clean.double().numpy(force=True).var(axis=0).mean())
    if not 0 < spread < math.inf:
        raise ValueError(
            f"experience: the spread of its {len(target)} target inputs is {spread}, so noise has no size; "
            "it needs finite inputs that are not all the same"
        )
    noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32)).to(inputs.device)
    noisy = (clean + noise * (size * spread)).to(inputs.dtype)
    if not noisy.isfinite().all():
        raise ValueError(f"size {size} times the spread {spread:.3g} is too large for {inputs.dtype} inputs")
    inputs = inputs.clone()
    inputs[target] = noisy
    return dataclasses.replace(experience, train_inputs=inputs)


def _in_memory(experience: Experience) -> Tensor:
    """The training inputs, which are about to be changed."""
    inputs = experience.train_inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(
            "experience: its training inputs are a source, whose images cannot be changed; pass an experience "
            "with train_inputs.tensor(), or read them with lazy=False"
        )
    return inputs


def _target(experience: Experience) -> Tensor:
    """Places of the target images, int64 [count], on the CPU."""
    target = (experience.train_labels == experience.number).nonzero()[:, 0].cpu()
    if not len(target):
        raise ValueError(
            f"experience: {experience.name!r} has no training input with its own label {experience.number}, so "
            "there is nothing to attack; pass one that is rightly labelled"
        )
    return target


def _count(rate: float, target: Tensor) -> int:
    return round(number(rate, "rate", 0, 1, kind="a share of the target images in [0, 1]") * len(target))


def _check_classes(experience: Experience, classes: int, name: str) -> None:
    highest = max([experience.number, *experience.train_labels.unique().tolist()])
    if highest >= classes:
        raise ValueError(f"{name} must be the number of classes of the stream, above {highest}; got {classes}")


def _generator(purpose: int, seed: int, experience: Experience) -> np.random.Generator:
    seed = whole_number(seed, "seed", least=None, most=None)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return np.random.default_rng([purpose, seed, experience.number])
