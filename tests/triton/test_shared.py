"""Shared memory: every configuration fits every GPU, by an arithmetic that is held against the compiler."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

pytest.importorskip("triton")

from flexkern.backends import shared, tuning
from flexkern.triton_kernels import aot
from flexkern.triton_kernels.catalogue import all_variants, variants_on
from helpers.compiled import Wanted, reports

# The targets that are compiled for, and some that are not here, or not yet
OTHERS = ("sm_87", "sm_121", "sm_130", "gfx950", "gfx1100")
ARCHITECTURES = [*map(aot.architecture_of, aot.TARGETS), *OTHERS]


def test_every_configuration_fits_every_gpu() -> None:
    rows = tuning.table().configurations
    for kernel, architecture in itertools.product(
        ("linear", *sorted(k for k in rows if "adapter" in k)), ARCHITECTURES
    ):
        for variant in rows[kernel].keys() - {"interpreter"}:
            configuration = tuning.config(kernel, variant, architecture)
            taken = shared.bytes_of(kernel, variant, configuration, architecture)
            assert 0 < taken <= shared.limit_of(architecture), (kernel, variant, architecture, configuration)


def test_what_fits_is_as_the_table_has_it() -> None:
    for kernel, variants in tuning.table().configurations.items():
        for variant, targets in variants.items():
            (configuration, _) = targets.get("cuda", next(iter(targets.values())))
            given = dict(configuration, num_stages=1, rows=16, step=16, columns=16, batch=16)
            given = {name: given[name] for name in configuration}
            assert shared.fitting(kernel, variant, given, "sm_90") is given


def test_it_is_made_smaller_until_it_fits() -> None:
    large = {"rows": 128, "step": 64, "num_warps": 8, "num_stages": 4}
    found = shared.fitting("adapter forward", "tf32-512", large, "sm_86")
    assert shared.bytes_of("adapter forward", "tf32-512", found, "sm_86") <= 99 * 1024
    assert found != large
    assert shared.fitting("adapter forward", "tf32-512", large, "interpreter") is large
    hopeless = {"rows": 16, "step": 16, "num_warps": 8, "num_stages": 2}
    assert shared.fitting("adapter forward", "tf32-65536", hopeless, "sm_86") is hopeless  # the launch says so
    assert shared.bytes_of("sgd", "stored", {"tile": 1024, "num_warps": 4}, "sm_86") == 0


def test_what_is_tried_is_not_made_smaller() -> None:
    """The tuner would else time another configuration than it says; one that does not fit is skipped."""
    large = {"rows": 64, "step": 64, "num_warps": 8, "num_stages": 4}
    with tuning.trial("adapter forward", "tf32-512", large):
        assert tuning.config("adapter forward", "tf32-512", "sm_86") == large


def check(wanted: Iterable[tuple[str, str]]) -> None:
    pairs = list(wanted)
    found = reports([Wanted(name, target, shared=True) for name, target in pairs])
    for (name, target), report in zip(pairs, found, strict=True):
        architecture = aot.architecture_of(target)
        variant = all_variants()[name]
        assert variant.tuned is not None
        configuration = variant.configuration(architecture)
        counted = shared.bytes_of(*variant.tuned, configuration, architecture)
        assert report["shared"] <= counted <= shared.limit_of(architecture), (name, target, configuration)


def test_the_count_is_a_bound_of_what_the_compiler_says() -> None:
    """Of those that had more than their GPU: 102,400 to 143,872 bytes of 101,376, and 69,632 of 65,536."""
    check(
        [
            ("adapter-tf32-256", "cuda:86"), ("adapter-backward-tf32-256", "cuda:120"),
            ("adapter-inference-tf32-512", "cuda:89"), ("adapter-parts-tf32-512", "cuda:86"),
            ("adapter-parts-tf32-512", "hip:gfx942"), ("linear-bf16-stored", "hip:gfx942"),
            ("linear-bf16-stored", "cuda:100"),
        ]
    )  # fmt: skip


# sm_89 and sm_120 have the limit and the instructions of sm_86, sm_103 those of sm_100, gfx90a those of gfx942.
# What needs most on the first two is in the test above; the command with --shared takes everything.
KINDS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942")


@pytest.mark.slow
@pytest.mark.parametrize("target", KINDS)
def test_the_count_is_a_bound_for_every_kind_of_target(target: str) -> None:
    """At the ranks that need most, and of the products of linear_step_."""
    known = variants_on(aot.architecture_of(target))
    ranks = ("-256", "-512", "-512-unaligned")
    wanted = [f"adapter-{kind}{x}{rank}" for kind, x, rank in itertools.product(
        ("", "backward-", "parts-"), ("bf16", "tf32", "ieee"), ranks
    )]  # fmt: skip
    wanted += ["linear-bf16-stored", "linear-tf32-mixed-hebbian", "linear-ieee-stored"]
    check((name, target) for name in wanted if name in known)
