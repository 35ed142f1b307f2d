"""The page, the JSON and the picture of the study of silent reserves."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from flexkern.files import write_json
from studies.reserve_settings import CONTROL, METHODS, NONE, StudyConfig, condition

__all__ = ["page", "write"]

BY_HAND = "<!-- From here on written by hand; the study keeps it. -->"
# Measure, its column, and what it is called in a sentence.
COLUMNS = {
    "early": ("early items", "early items"),
    "late": ("late items", "late items"),
    "last": ("all items", "all items together"),
    "learned": ("right after learning", "items right after they were learned"),
}


def write(results: dict[str, Any], out: Path) -> tuple[Path, Path, Path]:
    """Writes ``results.json``, ``README.md`` and ``picture.png`` into the folder ``out``.

    What was written by hand at the end of a README that is there already is kept.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    from studies.reserve_pictures import draw

    paths = out / "results.json", out / "README.md", out / "picture.png"
    write_json(paths[0], results)
    old = paths[1].read_text() if paths[1].exists() else ""
    _, marker, by_hand = old.partition(BY_HAND)
    paths[1].write_text(page(results) + (marker + by_hand if marker else BY_HAND + "\n"))
    draw(results, paths[2])
    return paths


def page(results: dict[str, Any]) -> str:
    """The page in Markdown, all of it from the results."""
    c, summary = results["configuration"], results["summary"]
    seeds = f"{c['first_seed']} to {c['first_seed'] + c['seeds'] - 1}"
    pilot = f"{c['first_pilot_seed']} to {c['first_pilot_seed'] + c['pilot_seeds'] - 1}"
    half = c["items"] // 2
    theta = StudyConfig().threshold(1e-3)
    features, freedom = c["channels"] * c["grid"] ** 2, c["seeds"] - 1
    text = f"""# A reserve of silent synapses on two-digit items

    python -m studies.silent_reserve --out docs/results/silent_reserve

Does a reserve help later items without hurting earlier ones? On accuracy after the stream:

{_answer(results)}

The hybrid network ({c["width"]} and {c["width"]} units on {features} random convolution features) learns
{c["items"]} two-digit items of the bundled digits one after the other, {c["epochs"]} epochs each, learning rate
{c["lr"]:g}, batches of {c["batch_size"]}, scale="auto": the same rule for all, measured for each network over
its first item. A share of the synapses of both hidden layers begins silent; the output layer has no reserve.
Seeds {seeds} ({c["seeds"]}), all networks on the same streams. {results["seconds"]} s on one thread.

**The table.** Accuracy in % (mean over seeds): after the whole stream on early items (1 to {half}), late items
({half + 1} to {c["items"]}) and all, and on each item right after it was learned. In brackets the paired
difference to no reserve and its 95 % confidence interval (Student's t, {freedom} degrees of freedom), bold
where the interval excludes 0. Intervals are not corrected for how many they are. "Functional": share at the
end, first / second hidden layer. "Scale": the mean of what was measured; a sparse network measures another one.

{_table(summary, "to_none", [NONE, *_conditions(c["shares"], [CONTROL, *METHODS])])}

A reserve that is never converted is a sparse network. So the difference that *converting* makes is that to the
control with the same synapses silent (here in brackets):

{_table(summary, "to_control", _conditions(c["shares"], list(METHODS)))}

**In words** ("better" and "worse" where the interval excludes 0, "not clear" where it does not):

{_verdicts(results)}

**How synapses convert.** "rate" and "hebbian" are the rules of the coincidence. A drawn weight is the layer's
own initial draw, as large as functional weights were; a small weight is {_eta():g} times the coincidence. The
threshold of each unit is adaptive (gain {theta.gain:g}, start {theta.start:g}). Its target was chosen in a
pilot on seeds {pilot} with {c["pilot_share"]:.0%} silent: the best accuracy on all items among targets that
convert at least a tenth of the reserve. Gain, start and the factor of small weights were found by trying a few
values on the pilot's seeds before the study; those trials are not in the table.

{_pilot(results)}

![Differences to the network without a reserve, and how reserves come alive](picture.png)

"""
    return "\n\n".join(_filled(paragraph) for paragraph in text.split("\n\n"))


def _filled(paragraph: str) -> str:
    """Prose in lines of one length, whatever its numbers; tables, lists, headings and code as they are."""
    if not paragraph or paragraph[0] in "|-#! ":
        return paragraph
    return textwrap.fill(paragraph, 115, break_long_words=False, break_on_hyphens=False)


def _eta() -> float:
    return next(options["eta"] for options in METHODS.values() if "eta" in options)


def _conditions(shares: list[float], methods: list[str]) -> list[str]:
    return [condition(method, share) for share in shares for method in methods]


def _table(summary: dict[str, Any], against: str, names: list[str]) -> str:
    titles = " | ".join(title for title, _ in COLUMNS.values())
    lines = [
        f"| silent at first, method | functional | scale | {titles} |",
        "| --- |" + " --- |" * (len(COLUMNS) + 2),
    ]
    for name in names:
        entry = summary[name]
        functional = " / ".join(f"{share:.0%}" for share in entry["functional"][-1])
        cells = [_cell(entry, against, measure) for measure in COLUMNS]
        lines.append(f"| {name} | {functional} | {entry['scale']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any], against: str, measure: str) -> str:
    value = f"{100 * entry[measure]['mean']:.1f}"
    if against not in entry:
        return value
    d = {name: 100 * v for name, v in entry[against][measure].items()}
    difference = f"{d['mean']:+.1f}"
    if _verdict(entry[against][measure]) != "not clear":
        difference = f"**{difference}**"
    return f"{value} ({difference}; {d['low']:+.1f} to {d['high']:+.1f})"


def _verdict(difference: dict[str, float]) -> str:
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "not clear"


def _verdicts(results: dict[str, Any]) -> str:
    """For each method and measure: with which shares it is better or worse."""
    shares, summary = results["configuration"]["shares"], results["summary"]
    lines = []
    for against, other in (("to_none", "no reserve"), ("to_control", "the control")):
        for method in [CONTROL, *METHODS] if against == "to_none" else METHODS:
            parts = []
            for measure, (_, words) in COLUMNS.items():
                of: dict[str, list[str]] = {}
                for share in shares:
                    verdict = _verdict(summary[condition(method, share)][against][measure])
                    of.setdefault(verdict, []).append(f"{share:.0%}")
                parts.append(f"{words} " + ", ".join(f"{v} ({', '.join(which)})" for v, which in of.items()))
            lines.append(f"- *{method}*, against {other}: {'; '.join(parts)}.")
    return "\n".join(lines)


def _answer(results: dict[str, Any]) -> str:
    """Which reserves have late items clearly better and early ones not clearly worse."""
    shares, summary = results["configuration"]["shares"], results["summary"]
    names = _conditions(shares, list(METHODS))
    answers = []
    for against, other in (("to_none", "no reserve"), ("to_control", "the same synapses silent for good")):
        late = [n for n in names if _verdict(summary[n][against]["late"]) == "better"]
        harmless = [n for n in late if _verdict(summary[n][against]["early"]) != "worse"]
        listed = f": {'; '.join(harmless)}" if harmless else ""
        answers.append(
            f"- Against {other}: late items are clearly better with {len(late)} of the {len(names)} reserves "
            f"that convert, and with {len(harmless)} of these early items are not clearly worse{listed}."
        )
    return "\n".join(answers)


def _pilot(results: dict[str, Any]) -> str:
    lines = ["| method | target | all items, % | of the reserve converted | chosen |", "| --- |" + " --- |" * 4]
    for p in results["pilot"]:
        chosen = "yes" if results["chosen_targets"][p["method"]] == p["target"] else ""
        lines.append(
            f"| {p['method']} | {p['target']:g} | {100 * p['last']:.1f} | {p['converted']:.0%} | {chosen} |"
        )
    return "\n".join(lines)
