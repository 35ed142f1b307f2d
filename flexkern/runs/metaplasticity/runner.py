"""All networks of an experiment on all seeds, several at a time, each in its own process."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.runs.events import EventLog, Sink
from flexkern.runs.folder import claim
from flexkern.runs.metaplasticity.network_rows import COLUMNS, KEYS, of_network
from flexkern.runs.metaplasticity.protocol import Protocol
from flexkern.runs.metaplasticity.schedule import Experiment
from flexkern.runs.metaplasticity.unit import Unit, make_learner
from flexkern.runs.provenance import decides_bits, refuse_another
from flexkern.runs.seeds import as_list, said_seeds, united
from flexkern.runs.start import check_files, usable_device

__all__ = [
    "check",
    "check_environment",
    "check_same",
    "configuration_of",
    "default_jobs",
    "grown",
    "one_thread",
    "read",
    "run",
    "units",
]

_FORMAT = 1
_FREE = ("seeds", "device")  # may change between two calls that fill the same folder
# In a worker: its way to the parent, and what lets one worker at a time write there.
_news: Any = None
_turn: Any = None


def units(experiment: Experiment, protocol: Protocol, out: Path, cache: Path) -> list[Unit]:
    """Every network on every seed. Seeds come first, so that no two at work want the same features made."""
    return [
        Unit(experiment, network.protocol(protocol), name, network, seed, out / "units", cache)
        for name, network in experiment.networks(protocol).items()
        for seed in protocol.seeds
    ]


def default_jobs(protocol: Protocol, count: int) -> int:
    """As many networks at a time as there are cores; on a GPU one."""
    if torch.device(protocol.device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, count))


def run(
    experiment: Experiment,
    protocol: Protocol,
    *,
    out: Path,
    cache: Path | None = None,
    jobs: int | None = None,
    restart: bool = False,
    accept_other_environment: bool = False,
    observe: Callable[[float, str], None] = lambda *_: None,
    sinks: Iterable[Sink] = (),
) -> dict[str, Any]:
    """Runs, or goes on with, an experiment. Seeds that ``out`` does not have are added to those that it has.

    Each network is trained in one process on one thread. On a CPU that is faster than one after the other on
    all cores, and than all as one batched network (``benchmarks/bench_seeds.py``), and the bits do not depend
    on how many are trained at a time.

    Args:
        experiment: which.
        protocol: its settings. Results are over the seeds that ``out`` has and these.
        out: folder for ``results.json``, and for the units while they are not done.
        cache: folder for features. Default: ``features`` beside ``out``.
        jobs: networks that are trained at a time. Default: :func:`default_jobs`.
        restart: discard what ``out`` holds.
        accept_other_environment: go on with a network that was begun on another processor or under other
            versions, though not to the bits that it would have come to.
        observe: told, after each presentation of an item, the share of all work that is done, and what was
            done. An exception out of it is a way to stop.
        sinks: of :func:`flexkern.runs.sinks.sinks_named`; told of each network that has seen its schedule.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: naming the setting; or if ``out`` holds a run of other settings, or a network that was begun
            in another environment and has not ended.
        FolderInUseError, OSError: if another run has ``out``, or nothing can be written there; nothing has been
            read then.
    """
    cache = out.parent / "features" if cache is None else cache
    known = None if restart else read(out / "results.json")
    same = known is not None and known["experiment"] == experiment.name  # others are refused below
    check(experiment, grown(protocol, known) if known is not None and same else protocol)
    check_files(cache, "features.safetensors")
    with claim(out, "units"), contextlib.closing(EventLog(out, COLUMNS, KEYS, sinks=sinks)) as log:
        log.check()
        return _run(
            experiment,
            protocol,
            out,
            cache,
            jobs,
            log,
            restart=restart,
            accept_other_environment=accept_other_environment,
            observe=observe,
        )


def check(experiment: Experiment, protocol: Protocol) -> None:
    """Whether an experiment can begin: its device, its data, and all its networks, tried at a tiny size.

    Raises:
        ValueError, FileNotFoundError: naming the setting.
    """
    usable_device(protocol.device)
    experiment.check(protocol)
    for name, network in experiment.networks(protocol).items():
        tiny = replace(network.protocol(protocol), width=1, device="cpu")
        try:
            make_learner(network, tiny, (1,), experiment.classes(protocol), protocol.seeds[0])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error


def _run(
    experiment: Experiment,
    protocol: Protocol,
    out: Path,
    cache: Path,
    jobs: int | None,
    log: EventLog,
    *,
    restart: bool,
    accept_other_environment: bool,
    observe: Callable[[float, str], None],
) -> dict[str, Any]:
    path = out / "results.json"
    if restart:
        for old in (path, *(out / "units").glob("*")):
            old.unlink(missing_ok=True)
    known = read(path)
    if known is not None:
        check_same(known, experiment.name, configuration_of(experiment, protocol), out)
        protocol = grown(protocol, known)
    configuration = configuration_of(experiment, protocol)
    for old in (out / "units").glob(".*.tmp"):  # of a process that was killed while it wrote
        old.unlink()
    results: dict[str, Any] = {
        "experiment": experiment.name,
        "title": experiment.title,
        "format": _FORMAT,
        "configuration": configuration,
        "finished": False,
    }
    write_json(path, results if known is None else known | {"configuration": configuration, "finished": False})
    todo = units(experiment, protocol, out, cache)
    kept = {(r["network"], r["seed"]): r for r in (known or {}).get("runs", [])}

    def wanted() -> list[Unit]:
        records = list(kept.values())
        new = [u for u in todo if (u.name, u.seed) not in kept]
        new = [u for u in new if experiment.wanted(u.name, u.seed, records, protocol)]
        for unit in new:
            check_environment(unit, out, accept=accept_other_environment)
        return new

    first = left = wanted()
    jobs = default_jobs(protocol, len(left)) if jobs is None else jobs
    # Networks that have ended while others had not are in the results at the end only, but have their records.
    ended = [r for unit in left if (r := unit.record())["finished"]]
    log.open([of_network(r) for r in (*kept.values(), *ended)], anew=known is None)
    before = sum((u.name, u.seed) in kept for u in todo)
    here = partial(_environment, protocol, jobs)
    done = _Done(max(experiment.count(protocol), before + len(left)), before, observe)
    try:
        while left:
            log.began(experiment=experiment.name, configuration=configuration, environment=here())
            for record in _all(left, jobs, done):
                kept[record["network"], record["seed"]] = record
                log.learned(of_network(record))
            left = wanted()
    except Exception:  # a stop by the user is none: that run goes on
        if not any(unit.path.exists() for unit in todo):  # nothing was learned
            if known is None:
                path.unlink()  # the folder stays free
                log.discard()
            else:
                write_json(path, known)
        raise
    records = [kept[u.name, u.seed] for u in todo if (u.name, u.seed) in kept]
    results |= {
        "finished": True,
        "environment": here() if first or known is None else known["environment"],
        "seconds": round(sum(r["seconds"] for r in records), 1),
        "summary": experiment.summarise(records, protocol),
        "runs": records,
    }
    write_json(path, results)
    log.ended(
        seconds=results["seconds"], claims={c["name"]: c["verdict"] for c in results["summary"]["claims"]}
    )
    for unit in todo:
        unit.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (out / "units").rmdir()
    return results


def read(path: Path) -> dict[str, Any] | None:
    """Results that were written before, or None.

    Raises:
        ValueError: if the file is not of this format.
    """
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["format"] == _FORMAT and isinstance(results["experiment"], str):
            return results
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"out: {path} is not of this version of flexkern run; give another folder, or --restart")


def grown(protocol: Protocol, known: dict[str, Any]) -> Protocol:
    """The protocol with the seeds of results that there are, which come first, and its own."""
    return replace(protocol, seeds=united(as_list(known["configuration"])["seeds"], protocol.seeds))


def configuration_of(experiment: Experiment, protocol: Protocol) -> dict[str, Any]:
    """What ``results.json`` says of a run's settings."""
    return _plain({"options": asdict(experiment), **protocol.asdict()})  # type: ignore[call-overload]


def check_same(known: dict[str, Any], name: str, configuration: dict[str, Any], out: Path) -> None:
    """Raises ValueError if results are of another experiment, or of other settings."""
    if known["experiment"] != name:
        changed = [f"it is of {known['experiment']}"]
    else:
        before, now = (
            {k: v for k, v in (c | c["options"]).items() if k not in (*_FREE, "options")}
            for c in (as_list(known["configuration"]), configuration)
        )
        changed = [
            f"{k} was {json.dumps(before.get(k))}, is {json.dumps(now.get(k))}"
            for k in now | before
            if before.get(k) != now.get(k)
        ]
    if changed:
        seeds = said_seeds(as_list(known["configuration"])["seeds"])
        ended = "" if known.get("finished", True) else ", which has not ended"
        raise ValueError(
            f"out: {os.fspath(out)!r} holds another run ({'; '.join(changed)}), of seeds {seeds}{ended}. Give "
            "another folder with --out, or discard that run with --restart"
        )


def check_environment(unit: Unit, out: Path, *, accept: bool) -> None:
    """Makes sure that a network which has learned something goes on in the environment that it did so in."""
    record = unit.record()
    if record["finished"] or not record["parts"]:
        return
    environments = record.get("environments") or [None]
    now = decides_bits(torch.device(unit.protocol.device), threads=1)
    refuse_another(
        environments[-1], now, out, accept=accept, what=f"{unit.name!r}, seed {unit.seed}, a network"
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _environment(protocol: Protocol, jobs: int) -> dict[str, Any]:
    here = environment()
    device = torch.device(protocol.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else here["versions"]["platform"]
    return {"versions": here["versions"], "device": name, "jobs": jobs, "threads": 1}


# --------------------------------------------------------------------------- processes


class _Done:
    """How much of all work is done, from what the units say of themselves."""

    def __init__(self, units: int, before: int, observe: Callable[[float, str], None]) -> None:
        self.units, self.before, self.observe = units, before, observe
        self.shares: dict[str, float] = {}

    def say(self, unit: str, share: float, what: str) -> None:
        self.shares[unit] = share
        self.observe((self.before + sum(self.shares.values())) / self.units, what)


def _all(todo: Sequence[Unit], jobs: int, done: _Done) -> Iterator[dict[str, Any]]:
    """The records of all units, in the order in which they end."""
    if jobs == 1 or len(todo) < 2:
        with one_thread():
            for unit in todo:
                yield unit.run(partial(done.say, unit.stem))
        return
    # A fork would copy torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    heard, said = context.Pipe(duplex=False)
    life, alive = context.Pipe(duplex=False)  # nothing is ever said there: it ends when this process does
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(said, context.Lock(), life)
    )
    # What the workers say, and their results. They are waited for here, in the thread that gets signals.
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(heard, events), daemon=True).start()
    try:
        futures = [pool.submit(_work, unit) for unit in todo]
        for future in futures:
            future.add_done_callback(events.put)
        left = len(futures)
        while left:
            event = events.get()
            if isinstance(event, Future):
                left -= 1
                yield event.result()
            else:
                done.say(*event)
    except BaseException:
        alive.close()  # a unit may take hours, and can be stopped at any moment
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        alive.close()
        said.close()  # which ends the listener, too
    while (event := events.get()) is not None:
        done.say(*event)


def _listen(heard: Any, events: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError), heard:
        while True:
            events.put(heard.recv())
    events.put(None)


def _begin(said: Any, turn: Any, life: Any) -> None:
    global _news, _turn
    _news, _turn = said, turn
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches parent and workers alike: it is the parent's
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent(life: Any) -> None:
    """Ends this worker when the parent stops or dies: else it would write into the next run's folder."""
    with contextlib.suppress(EOFError, OSError):
        life.recv()
    os._exit(1)


def _work(unit: Unit) -> dict[str, Any]:
    def notify(share: float, what: str) -> None:
        with _turn:
            _news.send((unit.stem, share, what))

    return unit.run(notify)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As networks are trained."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
