"""The whole service against a plain script that a user would write, in one run.

    python -m benchmarks.versus_sequential

The plain half is `plain_script.py`: Optuna, `transformers.Trainer`, PEFT and bitsandbytes, one trial after
another with all cores. The service half is `nightsweep serve` with a study submitted over REST. Both train
the same grid of 24 recipes on the quickstart's base in nf4, with the same rows in the same order, the same
adapters to begin with and the same evaluations; nothing is pruned. That they did the same work is checked:
every evaluation loss of the one against the other's.

The last line is the plain script's time from its start to its last result, imports included, over the
service's, from the start of `nightsweep serve` to the end of the study. The halves run one after the other.
Run it on an idle machine: a script that uses all cores suffers most from company. How much the machine did
for others is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.halves import run_plain, run_service, same_environment
from benchmarks.sweep import Sweep, check_trials, loss_differences

AGREEMENT = 0.001
"""The halves did the same work when no evaluation loss differs by more, relative to the plain script's."""
COMPANY = 0.1
"""Cores' worth of work by others above which a half's time is not to be relied on."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "optuna", "ray")


def machine() -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def trial_table(
    sweep: Sweep, plain: dict[str, Any], service: dict[str, Any], differences: dict[int, float]
) -> str:
    """Both halves' trials by batch size."""
    lines = [
        "| batch | trials | plain: training s | evaluation s | load, save s | sum s | a trial s "
        "| service: a trial s | of it training s | eval losses differ by |",
        "| --- " * 10 + "|",
    ]
    for sizes, name in [*(((size,), str(size)) for size in sweep.batch_sizes), (sweep.batch_sizes, "all")]:
        theirs = [trial for trial in plain["trials"] if trial["params"]["batch_size"] in sizes]
        ours = [trial for trial in service["trials"] if trial["recipe"]["batch_size"] in sizes]
        parts = [sum(t[f"{part}_seconds"] for t in theirs) for part in ("train", "eval", "other")]
        count = len(theirs)
        elapsed = sum(t["seconds_in_service"] for t in ours) / count
        training = sum(t["train_seconds"] for t in ours) / count
        lines.append(
            f"| {name} | {count} | {parts[0]:.1f} | {parts[1]:.1f} | {parts[2]:.1f} | {sum(parts):.1f} "
            f"| {sum(parts) / count:.2f} | {elapsed:.2f} | {training:.2f} "
            f"| {max(differences[t['number']] for t in theirs):.1e} |"
        )
    return "\n".join(lines)


def time_table(plain: dict[str, Any], service: dict[str, Any]) -> str:
    """Where each half's time went; every row but the sums is a part of one of them."""
    s = service
    rows = [
        ("plain script: imports", plain["imported"]),
        ("plain script: tokenisation", plain["tokenized"] - plain["imported"]),
        ("plain script: trials", plain["ended"] - plain["tokenized"]),
        ("**plain script: start to last result**", plain["ended"]),
        ("service: start to ready", s["ready"]),
        ("service: submission to the first order (a worker is there)", s["first_dispatched"] - s["ready"]),
        (
            "service: to the first trial's first step (base and data are loaded)",
            s["first_started"] - s["first_dispatched"],
        ),
        ("service: to the first worker without work", s["first_worker_idle"] - s["first_started"]),
        ("service: to the last trial's end", s["last_trial_ended"] - s["first_worker_idle"]),
        ("service: to the study's end, as REST shows it", s["ended"] - s["last_trial_ended"]),
        ("**service: submission to study's end**", s["ended"] - s["ready"]),
        ("**service: start to study's end**", s["ended"]),
        ("not counted: the plain script's exit", plain["gone"] - plain["ended"]),
        ("not counted: stopping the service", s["gone"] - s["ended"]),
    ]
    return "\n".join(["| | s |", "| --- | ---: |", *(f"| {name} | {value:.1f} |" for name, value in rows)])


def reused_plain(file: Path, sweep: Sweep) -> dict[str, Any]:
    """The plain half of an earlier run of the same sweep."""
    earlier = json.loads(file.read_text())
    if earlier["sweep"] != json.loads(json.dumps(vars(sweep))):
        raise SystemExit(f"{file} is of another sweep: {earlier['sweep']}")
    plain: dict[str, Any] = earlier["plain"]
    return plain


def report_cores(name: str, half: dict[str, Any]) -> None:
    print(f"{name}: {half['own_cores']:.2f} cores on average; others used {half['other_cores']:.2f}")
    if half["other_cores"] > COMPANY:
        print(f"WARNING: the machine was not idle during the {name}; its time is not to be relied on.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-sizes", default="1,2,4,8", help="comma-separated (default: %(default)s)")
    parser.add_argument("--trials", type=int, help="a part of the grid, for a quick look")
    parser.add_argument("--rows", type=int, default=600, help="rows to train on (default: %(default)s)")
    parser.add_argument("--base", help="the folder of another base than the quickstart's")
    parser.add_argument(
        "--data", help="a folder of train.jsonl and eval.jsonl, rows of prompt and completion"
    )
    parser.add_argument("--max-length", type=int, help="tokens of a row, with other data")
    parser.add_argument("--plain-threads", type=int, help="of the plain script (default: torch's)")
    parser.add_argument("--plain-json", type=Path, help="take the plain half from an earlier run's JSON")
    parser.add_argument("--home", type=Path, help="keep the service's home, with its logs, in this folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/versus_sequential.json"))
    arguments = parser.parse_args()
    try:
        batch_sizes = [int(size) for size in arguments.batch_sizes.split(",")]
        given = {name: getattr(arguments, name) for name in ("base", "data", "max_length")}
        source = {name: value for name, value in given.items() if value is not None}
        sweep = Sweep.of(batch_sizes, trials=arguments.trials, train_rows=arguments.rows, **source)
    except ValueError as error:
        parser.error(str(error))
    # As Ctrl-C does: the halves' processes are ended, and the temporary folder goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(
        f"{sweep.trials} trials of {sweep.train_rows} rows, evaluated on {sweep.eval_rows} rows after "
        f"{sweep.eval_every_examples} and at the end",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="versus-") as name, same_environment():
        folder = Path(name)
        if arguments.plain_json:
            plain = reused_plain(arguments.plain_json, sweep)
        else:
            plain = run_plain(sweep.plain_work(), folder, threads=arguments.plain_threads)
        report_cores(f"plain script, {plain['threads']} threads", plain)
        home = arguments.home or folder / "home"
        service = run_service(sweep.definition(), home.resolve(), [sweep.base, sweep.data])
        report_cores(f"service, {service['workers']} workers", service)

    check_trials(sweep.recipes(), service["trials"])
    differences = loss_differences(plain["trials"], service["trials"])
    print(f"\n{trial_table(sweep, plain, service, differences)}\n\n{time_table(plain, service)}\n")
    speedup = plain["ended"] / service["ended"]
    result = {
        "machine": machine(),
        "sweep": vars(sweep),
        "one_run": arguments.plain_json is None,
        "speedup": speedup,
        "speedup_of_a_running_service": plain["ended"] / (service["ended"] - service["ready"]),
        "largest_loss_difference": max(differences.values()),
        "plain": plain,
        "service": service,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(f"largest relative difference of an evaluation loss: {max(differences.values()):.1e}")
    if max(differences.values()) > AGREEMENT:
        raise SystemExit(f"that is more than {AGREEMENT:g}: the halves did not do the same work")
    print(f"speedup of a service that runs already: {result['speedup_of_a_running_service']:.2f}")
    origin = f" (not one run: the plain half is from {arguments.plain_json})" if arguments.plain_json else ""
    print(f"speedup: {speedup:.2f}{origin}")


if __name__ == "__main__":
    main()
