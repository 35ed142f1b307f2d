"""Which method remembers best? Every method on every stream with every backbone, over several seeds.

    python scripts/draw_characters.py --out characters
    python scripts/pretrain_vit.py --cifar10 cifar10.npz --patch 8 --epochs 8 --seed 1 --out other
    python -m studies.method_study --cifar100 cifar100.npz --mnist mnist.npz --characters characters \\
        --backbone small --backbone other --seeds 5 --out docs/results/artsy/methods

Each unit (stream, backbone, seed, method) is kept as it is done, and a study that was stopped goes on with the
next. A stream whose data are not given is left out. On a GPU the same command takes
``--backbone FOLDER_OF_VIT_B_16 --setting paper``: the paper's recipe, and all of CIFAR-100 as B0-Inc10.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.plain import nearest
from studies.method_study.methods import DEFAULT, METHODS
from studies.method_study.page import fill
from studies.method_study.settings import PAPER, REDUCED, Setting, setting_for
from studies.method_study.streams import STREAMS
from studies.method_study.summary import summarise
from studies.method_study.units import Bench, unit

__all__ = ["collect", "main", "run"]

SETTINGS = {"reduced": REDUCED, "paper": PAPER}


def run(
    data: Mapping[str, str],
    backbones: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Setting],
    kept: Path,
    *,
    methods: Sequence[str] = DEFAULT,
    again: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Makes the units that are not in ``kept`` yet.

    Args:
        data: paths of the streams' data, by the streams' names.
        backbones: as :func:`flexkern.backbones.load_backbone` takes them.
        seeds: of streams, and of everything random in them.
        settings: by the streams' names.
        kept: folder of units and features.
        methods: which ones.
        again: those of them that are made again although they are there.
        progress: called with a line for each unit.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # All seeds of the cheap methods before any adapter is trained: a study that is stopped has them.
    cheap = [m for m in methods if METHODS[m].head is not None and not METHODS[m].adapted]
    for group in (cheap, [m for m in methods if m not in cheap]):
        for name, path in data.items():
            for backbone in backbones:
                for seed in seeds:
                    where = kept / name / label(backbone) / f"seed{seed}"
                    bench = Bench(name, path, seed, backbone, settings[name], device, where, progress)
                    for method in group:
                        unit(bench, METHODS[method], again=method in again)


def grown(before: Mapping[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Results with the units of those that were there before, where they were not made anew.

    Whoever runs a part of the study from a clone, which has the results and not the folder of units, adds to
    them so.

    Raises:
        ValueError: if what was there had another setting.
    """
    if before is None:
        return now
    made = {_name(u) for u in now["units"]}
    kept = [u for u in before["units"] if _name(u) not in made]
    for stream in {u["stream"] for u in kept}:
        have, had = (json.loads(json.dumps(r["setting"][stream])) for r in (now, before))
        whole_network = any(METHODS[u["method"]].whole_network for u in kept if u["stream"] == stream)
        if setting_for(have, whole_network) != setting_for(had, whole_network):
            raise ValueError(
                f"--out: its results of {stream!r} were made with another setting; name another folder"
            )
    order = list(STREAMS), list(METHODS)
    units = sorted(
        [*kept, *now["units"]],
        key=lambda u: (order[0].index(u["stream"]), u["backbone"], order[1].index(u["method"]), u["seed"]),
    )
    return now | {
        "seeds": sorted({*before["seeds"], *now["seeds"]}),
        "backbones": before["backbones"] | now["backbones"],
        "summary": summarise(units),
        "units": units,
    }


def _name(unit: Mapping[str, Any]) -> tuple[Any, ...]:
    return unit["stream"], unit["backbone"], unit["method"], unit["seed"]


def label(backbone: str) -> str:
    """A backbone's name in files and tables."""
    return Path(backbone).name


def collect(
    kept: Path, methods: Sequence[str], backbones: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The units that are in ``kept``, of these methods, backbones and seeds."""
    units = []
    for stream in STREAMS:
        for backbone in map(label, backbones):
            for method in methods:
                for seed in seeds:
                    path = kept / stream / backbone / f"seed{seed}" / f"{method}.json"
                    if path.exists():
                        found = json.loads(path.read_text())
                        named = {"stream": stream, "backbone": backbone, "seed": seed, "method": method}
                        units.append(named | {k: v for k, v in found.items() if k not in ("key", "tokens")})
    return units


def facts(backbone: str) -> dict[str, Any]:
    """What is known of a backbone: how it was pre-trained, where that stands beside it."""
    folder = Path(backbone)
    if backbone == "small":
        from flexkern import backbones

        folder = Path(backbones.__file__).parent / "small"
    path = folder / "training.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, and writes its results and the tables of its page."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.method_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cifar100", help="an archive, see flexkern.streams.image_pack")
    parser.add_argument("--mnist", help="an archive, see flexkern.streams.mnist")
    parser.add_argument("--characters", help="a folder in Omniglot's layout, see scripts/draw_characters.py")
    parser.add_argument("--backbone", action="append", help="may be given several times; default: small")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--first-class", type=int, help="of CIFAR-100, where choices are made on other classes")
    parser.add_argument("--setting", choices=SETTINGS, default="reduced")
    parser.add_argument("--only", action="append", choices=STREAMS, help="this stream; may be repeated")
    parser.add_argument("--methods", default=",".join(DEFAULT), help="comma-separated")
    parser.add_argument("--again", default="", help="methods that are run again although they are there")
    parser.add_argument("--kept", type=Path, default=Path("out/method_study"), help="folder of units, features")
    parser.add_argument("--out", type=Path, default=Path("out/method_study/results"))
    parser.add_argument(
        "--collect", action="store_true", help="run nothing: results of the units that are there"
    )
    given = parser.parse_args(arguments)
    methods, again = _methods(parser, given.methods), _methods(parser, given.again)
    settings = dict(SETTINGS[given.setting])
    if given.first_class is not None:
        settings["cifar100"] = replace(settings["cifar100"], first_class=given.first_class)
    if given.seeds < 1 or given.first_seed < 0:
        parser.error(
            f"--seeds must be at least 1, and --first-seed 0, got {given.seeds} and {given.first_seed}"
        )
    paths = {name: getattr(given, kind.data) for name, kind in STREAMS.items()}
    for name in given.only or ():
        if not paths[name] and not given.collect:
            parser.error(f"--only {name}: name its data, --{STREAMS[name].data}")
    data = {name: path for name, path in paths.items() if path and name in (given.only or STREAMS)}
    backbones = given.backbone or ["small"]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if not given.collect:
        if not data:
            parser.error("name the data of a stream: --cifar100, --mnist or --characters")
        try:
            run(data, backbones, seeds, settings, given.kept, methods=methods, again=again,
                progress=lambda line: print(line, flush=True))  # fmt: skip
        except (OSError, ValueError) as error:  # of what was given: paths, archives, backbones
            parser.error(str(error))
    units = collect(given.kept, list(METHODS), backbones, seeds)
    results = {
        "experiment": "methods compared on several streams and backbones",
        "seeds": list(seeds),
        "setting": {name: asdict(settings[name]) for name in STREAMS},
        "backbones": {label(b): facts(b) for b in backbones},
        "summary": summarise(units),
        "units": units,
        "versions": environment()["versions"],
    }
    path = given.out / "results.json"
    try:
        results = grown(json.loads(path.read_text()) if path.exists() else None, results)
    except ValueError as error:
        parser.error(str(error))
    write_json(path, results)
    print(f"wrote {path}")
    page = given.out.parent.with_suffix(".md")
    if page.exists():
        page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")
        print(f"wrote {page}")


def _methods(parser: argparse.ArgumentParser, names: str) -> list[str]:
    found = [name for name in names.split(",") if name]
    for name in found:
        if name not in METHODS:
            parser.error(f"no method {name!r}{nearest(name, METHODS)}; they are {', '.join(METHODS)}")
    return found
