"""``python -m reliability kills --count 1000 --processes 2``; see ``python -m reliability --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description="Kills, and long streams.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    parts = parser.add_subparsers(dest="part", required=True)
    kills = parts.add_parser("kills", help="runs that are killed at random moments")
    kills.add_argument("--count", type=int, default=1000)
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    found: dict[str, Any]
    if arguments.part == "kills":
        from reliability.kills import run

        found = run(arguments.count, seed=arguments.seed, processes=arguments.processes)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    else:
        print(json.dumps(found, indent=1))
    for fault in found["faults"][:5]:
        print(f"--- {fault['subject']}\n{fault['error']}")
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
