"""``python -m reliability kills --count 1000 --processes 2``; see ``python -m reliability --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flexkern.files import write_json
from helpers.machine import machine_line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description="Kills, and long streams.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    parts = parser.add_subparsers(dest="part", required=True)
    kills = parts.add_parser("kills", help="runs that are killed at random moments")
    kills.add_argument("--count", type=int, default=1000)
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--processes", type=int, default=os.cpu_count())
    soak = parts.add_parser("soak", help="long streams")
    soak.add_argument("--judge", action="store_true", help="only judge the series in the JSON file anew")
    soak.add_argument("--quick", action="store_true", help="as long as the tests have them")
    arguments = parser.parse_args()
    found: dict[str, Any]
    if arguments.part == "kills":
        from reliability.kills import run

        found = run(arguments.count, seed=arguments.seed, processes=arguments.processes)
    elif arguments.judge:
        found = json.loads(arguments.json.read_text())
        found["faults"] = _judged(found["series"])
    else:
        found = _soak(arguments.quick)
    if arguments.json:
        write_json(arguments.json, found if "date" in found else machine_line() | found)
    else:
        print(json.dumps(found, indent=1))
    for fault in found["faults"][:5]:
        print(f"--- {fault['subject']}\n{fault['error']}")
    return int(bool(found["faults"]))


def _soak(quick: bool) -> dict[str, Any]:
    import torch

    from reliability.soak import SUBJECTS, soak

    torch.set_num_threads(1)
    found: dict[str, Any] = {"series": {}, "per_item": {}, "faults": []}
    for subject in SUBJECTS:
        series = soak(subject, subject.quick if quick else subject.full)
        found["series"][subject.name], found["per_item"][subject.name] = series, subject.grows
        print(f"{subject.name}: {series['items'][-1]:.0f} items", flush=True)
    found["faults"] = _judged(found["series"])
    return found


def _judged(series: dict[str, Any]) -> list[dict[str, str]]:
    from reliability.soak import SUBJECTS, faults

    return [
        {"subject": subject.name, "error": text}
        for subject in SUBJECTS
        for text in faults(series[subject.name], subject.grows, subject.square)
    ]


if __name__ == "__main__":
    sys.exit(main())
