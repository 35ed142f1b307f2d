"""Options of methods in a configuration: what the learners' constructors say is what a file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from flexkern.learners import METHODS, SimpleCIL, register_method, registry
from flexkern.nn import GateOptions
from flexkern.runs.incremental.config import Config, find_config, parse_config, read_config, shipped
from flexkern.runs.incremental.config.file_schema import file_model, file_schema
from flexkern.runs.incremental.config.method_options import method_model, options_of
from flexkern.runs.incremental.config.sentences import said
from flexkern.runs.incremental.config.toml_files import _toml
from flexkern.runs.incremental.growth import differences

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def parsed(options: dict[str, Any], method: str = "artsy", learner: dict[str, Any] | None = None) -> Config:
    return parse_config(
        {
            "data": {},
            "stream": {"increment": 2},
            "learner": learner or {},
            "methods": [{"name": "first", "method": "simplecil"}, {"name": "A", "method": method, **options}],
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"batch_size": 20.5}, "batch_size must be a whole number, got 20.5"),
        ({"epochs": "2"}, "epochs must be a whole number, got '2'"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"lr": False}, "lr must be a number, got False"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"rank": {}}, "rank must be a whole number, got {}"),
        ({"crop": [0.5]}, r"crop must be a list of 2 numbers, got \[0.5\]"),
        ({"crop": [0.5, "x"]}, r"crop\[1\] must be a number, got 'x'"),
        ({"gate": "mlp"}, "gate must be a table, got 'mlp'"),
        ({"gate": {"foo": 1}}, "unknown key 'gate.foo'; allowed are batch, calibration, "),
        ({"gate": {"gatting": "soft"}}, r"unknown key 'gate.gatting' \(did you mean gating\?\)"),
        ({"gate": {"k": 1.5}}, "gate.k must be a whole number, got 1.5"),
        ({"gate": {"fill": 1}}, "gate.fill must be true or false, got 1"),
        ({"gate": {"ridge": [1]}}, r"gate.ridge must be a number or a text, got \[1\]"),
        ({"rnk": 3}, r"method 'artsy' has no option 'rnk' \(did you mean rank\?\); it has adapter_scale, "),
        ({"recipe": {}}, "method 'artsy' has no option 'recipe'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"methods, entry 2: {message}"):
        parsed(options)


def test_a_mistake_of_the_shared_table_is_found_there() -> None:
    with pytest.raises(ValueError, match=r"methods, entry 1, by \[learner\]: epochs must be a whole number"):
        parsed({}, learner={"epochs": 1.5})
    with pytest.raises(ValueError, match=r"entry 1, by \[learner\]: method 'simplecil' has no option 'alpha'"):
        parsed({}, learner={"alpha": 0.4})
    with pytest.raises(ValueError, match="entry 2: epochs must be a whole number"):
        parsed({"epochs": "x"}, learner={"epochs": 2})


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_held_against_its_type(method: str) -> None:
    """The kind: whatever a constructor takes, of each method, and of the record in its gate."""
    options = options_of(method)
    assert set(options) == set(METHODS[method].options())
    wrong: tuple[Any, ...] = ("x", 1.5, True, [], {}, [[1]])
    refused = 0
    for name in options:
        for value in wrong:
            try:
                parsed({name: value}, method)
            except ValueError as error:
                assert str(error).startswith(f"methods, entry 2: {name}")  # noqa: PT017 - many in one test
                refused += 1
    assert refused >= 4 * len(options)  # a text may be any text; the rest is no text
    assert all(option.meaning and said(option.hint) != "a value" for option in options.values())


def test_the_options_of_a_gate_are_those_of_its_record() -> None:
    gate = method_model("artsy").model_json_schema()["$defs"]["GateOptions"]["properties"]
    assert set(gate) == set(vars(GateOptions()))
    assert all("description" in key for key in gate.values())
    assert gate["theta"]["default"] == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_options_as_well(method: str) -> None:
    given = {name: o.default for name, o in options_of(method).items() if o.default is not None}
    parsed(json.loads(json.dumps(given)), method)  # as TOML has them


def test_names_of_methods_have_their_own_defaults() -> None:
    assert options_of("ease")["gate"].default == {"gate": "none"}
    assert options_of("artsy")["gate"].default is None
    assert (options_of("artsy")["lr"].default, options_of("finetune")["lr"].default) == (0.025, 0.01)


def test_a_users_method_is_held_against_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @register_method("scaled", factor=0.5)
    class Scaled(SimpleCIL):
        """Scaled.

        Args:
            factor: of the logits.
            hook: is no value of TOML.
            mode: one of two.
        """

        def __init__(
            self,
            backbone: Any = "small",
            *,
            factor: float = 1.0,
            hook: Any = None,
            mode: str | Path = "a",
            **common: Any,
        ) -> None:
            super().__init__(backbone, **common)  # fmt: skip

    assert parsed({"factor": 2, "hook": 3, "mode": "b"}, "scaled").methods[1].options["factor"] == 2
    assert options_of("scaled")["factor"] == (float, 0.5, "of the logits.")
    with pytest.raises(ValueError, match="entry 2: factor must be a number, got 'x'"):
        parsed({"factor": "x"}, "scaled")
    with pytest.raises(ValueError, match="entry 2: mode must be a text, got 3"):
        parsed({"mode": 3}, "scaled")
    with pytest.raises(ValueError, match=r"has no option 'factr' \(did you mean factor\?\)"):
        parsed({"factr": 1}, "scaled")


# ----------------------------------------------------------------- the schema


@pytest.mark.parametrize("name", shipped())
def test_the_schema_takes_what_is_shipped(name: str) -> None:
    table = _toml().loads(find_config(name).read_text())
    file_model().model_validate_json(json.dumps(table))


def test_the_schema_refuses_what_parsing_refuses() -> None:
    table = _toml().loads(find_config("digits").read_text())
    for path, value in (
        (("titel",), "x"), (("data", "kind"), "zip"), (("stream", "increment"), 0),
        (("learner", "epochs"), 1.5), (("methods", 0, "rank"), "x"), (("methods", 0, "gate"), {"foo": 1}),
        (("methods", 3, "alpha"), 0.4),
    ):  # fmt: skip
        changed: Any = json.loads(json.dumps(table))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValueError, match="validation error"):
            file_model().model_validate_json(json.dumps(changed))
        with pytest.raises(ValueError, match=str(path[-1])):
            parse_config(changed)


def test_the_schema_is_json_and_names_all_methods() -> None:
    schema = json.loads(json.dumps(file_schema()))
    assert set(METHODS) <= set(schema["$defs"])
    assert schema["$defs"]["artsy"]["properties"]["method"]["const"] == "artsy"
    increment = schema["$defs"]["StreamConfig"]["properties"]["increment"]
    assert increment["anyOf"][0]["minimum"] == 1
    assert "required" not in schema["$defs"]["StreamConfig"]  # each kind of stream needs other keys


# ----------------------------------------------------------------- before and now


def test_a_run_of_before_is_the_same_configuration() -> None:
    """Results that were written before there were models are of the same configuration, key by key."""
    before = json.loads((RESULTS / "demo" / "artsy" / "results.json").read_text())["configuration"]
    now = read_config(find_config("digits")).override(out=before["out"])
    assert differences(before, now.asdict()) == []
    assert json.dumps(now.asdict()) == json.dumps(before)  # in the same order, too
