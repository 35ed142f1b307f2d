"""What EWC, SI, replay and joint training share: exact resuming, seeds, and errors for people."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import EWC, MLP_METHODS, SI, JointMLP, MetaplasticMLP, Progress, ReplayMLP, load_mlp
from flexkern.streams import Experience, Stream
from helpers.mlp_blobs import SIZE, all_bits, bits, make

# ----------------------------------------------------------------- all of them

ALL = [
    (EWC, {"strength": 30.0, "decay": 0.5, "fisher_samples": 50}),
    (EWC, {"strength": 30.0, "momentum": 0.9}),
    (SI, {"strength": 3.0, "damping": 0.01}),
    (SI, {"momentum": 0.9}),
    (ReplayMLP, {"memory": 30, "replay_batch": 8}),
    (ReplayMLP, {"memory": 500, "momentum": 0.9}),
    (JointMLP, {}),
]


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_resumes_to_the_bit_after_each_item_and_each_epoch(
    kind: type[MetaplasticMLP], options: dict, stream: Stream, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    straight = make(kind, **options)
    stops: list[Path] = [tmp_path / "start"]
    straight.save(stops[0])

    def save(p: Progress) -> None:
        stops.append(tmp_path / f"{p.item}-{p.epoch}")
        straight.save(stops[-1])

    for e in stream:
        straight.learn(e, epochs=2, progress=save)
        stops.append(tmp_path / f"{e.number}-end")
        straight.save(stops[-1])
    assert len(stops) == 10
    for stop in stops:
        resumed = load_mlp(stop)
        assert type(resumed) is kind
        for e in stream[resumed.items_learned :]:
            resumed.learn(e, epochs=2)
        assert all_bits(resumed) == all_bits(straight), stop.name
        assert resumed._configuration == straight._configuration


@pytest.mark.parametrize(
    ("kind", "options", "widths"),
    [
        *((kind, options, widths) for kind, options in ALL[::2] for widths in ((), (12,), (12, 10, 8))),
        *((MetaplasticMLP, {"silent_fraction": 0.3}, widths) for widths in ((12,), (12, 10, 8))),
    ],
)
def test_any_number_of_hidden_layers(
    kind: type, options: dict, widths: tuple[int, ...], stream: Stream, tmp_path: Path
) -> None:
    net = make(kind, **options, widths=widths)
    layers = [layer for layer in net.model if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [*widths, stream.classes]
    for item in stream:
        net.learn(item, epochs=1)
    net.save(tmp_path / "net.safetensors")
    again = load_mlp(tmp_path / "net.safetensors")
    x, fresh = stream[-1].test_inputs, make(kind, **options, widths=widths)
    assert torch.equal(again.logits(x), net.logits(x))
    for layer, first in zip(layers, (m for m in fresh.model if isinstance(m, nn.Linear)), strict=True):
        assert not torch.equal(layer.weight, first.weight)  # each one has learned


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_an_exception_out_of_progress_changes_nothing(
    kind: type[MetaplasticMLP], options: dict, stream: Stream
) -> None:
    class Stop(Exception):  # noqa: N818 - it is a signal
        pass

    def stop(_: Progress) -> None:
        raise Stop

    straight, stopped = make(kind, **options), make(kind, **options)
    for e in stream:
        straight.learn(e, epochs=2)
        for _ in range(2):
            with pytest.raises(Stop):
                stopped.learn(e, epochs=2, progress=stop)
        stopped.learn(e, epochs=2)
        assert all_bits(stopped) == all_bits(straight)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_one_seed_gives_the_same_bits_and_leaves_the_global_generator(
    kind: type[MetaplasticMLP], options: dict, stream: Stream
) -> None:
    runs = []
    for global_seed, seed in ((1, 4), (2, 4), (2, 5)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        net = make(kind, seed=seed, **options)
        for e in stream[:2]:
            net.learn(e, epochs=1)
        assert torch.equal(before, torch.get_rng_state())
        runs.append(all_bits(net))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_load_mlp_reads_the_metaplastic_network_and_refuses_others(stream: Stream, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net = make(MetaplasticMLP)
    net.learn(stream[0], epochs=1)
    net.save(tmp_path / "net")
    again = load_mlp(tmp_path / "net")
    assert type(again) is MetaplasticMLP is MLP_METHODS["metaplastic"]
    assert bits(again) == bits(net)
    with pytest.raises(ValueError, match="holds 'MetaplasticMLP' in format 2; this version reads 'ReplayMLP'"):
        ReplayMLP.load(tmp_path / "net")
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "other", {"flexkern": '{"learner": "Other"}'})
    with pytest.raises(ValueError, match="holds 'Other', which is none of"):
        load_mlp(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_mlp(tmp_path / "absent")


def test_features_are_taken_inside_and_kept_honest(stream: Stream, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("directions", torch.randn(SIZE, 7, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return x.float() @ self.directions

    features = Features()
    net = make(ReplayMLP, features=features, memory=10)
    net.learn(stream[0], epochs=1)
    net.save(tmp_path / "net")
    assert net._inputs.shape == (10, 7)
    again = load_mlp(tmp_path / "net", features)
    assert all_bits(again) == all_bits(net)
    with pytest.raises(ValueError, match="not the extractor"):
        load_mlp(tmp_path / "net")


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (EWC, {"strength": -1.0}, ValueError, r"strength must be in \[0, 1e\+30\], got -1"),
        (EWC, {"strength": math.nan}, ValueError, "strength must be in"),
        (SI, {"strength": math.inf}, ValueError, "strength must be in .* got inf"),
        (SI, {"strength": "strong"}, TypeError, "strength must be a number, got 'strong'"),
        (EWC, {"decay": 1.5}, ValueError, r"decay must be in \[0, 1\], got 1.5"),
        (EWC, {"fisher_samples": 0}, ValueError, "fisher_samples must be at least 1, got 0"),
        (EWC, {"fisher_samples": 2.5}, TypeError, "fisher_samples must be a whole number, got 2.5"),
        (SI, {"damping": 0}, ValueError, r"damping must be in \[1e-30, 1e\+30\], got 0"),
        (ReplayMLP, {"memory": 0}, ValueError, "memory must be at least 1, got 0"),
        (ReplayMLP, {"memory": True}, TypeError, "memory must be a whole number, got True"),
        (ReplayMLP, {"replay_batch": -3}, ValueError, "replay_batch must be at least 1, got -3"),
        (JointMLP, {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (JointMLP, {"network": "hybrid"}, TypeError, "unexpected keyword argument 'network'"),
        (ReplayMLP, {"memroy": 10}, TypeError, "unexpected keyword argument 'memroy'"),
    ],
)
def test_arguments_are_checked(kind: type, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(kind, **options)


@pytest.mark.parametrize("kind", [EWC, SI, ReplayMLP, JointMLP])
def test_an_experience_that_does_not_fit_changes_nothing(kind: type, stream: Stream) -> None:
    net = make(kind)
    net.learn(stream[0], epochs=1)
    before = all_bits(net)
    x, y = stream[1].train_inputs, stream[1].train_labels
    with pytest.raises(ValueError, match=r"labels must be in \[0, 6\)"):
        net.learn(Experience("a", 0, x, y + 6, x, y))
    assert all_bits(net) == before
    assert net.items_learned == 1
