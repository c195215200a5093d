"""Tokenizers that panic, abort and multiply: real ones, and what becomes of the study and of its worker."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec
from tests.support.workers.models import build_tiny_base, build_tiny_tokenizer
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import of_type, trial_order
from workers.contract import OutcomeStatus, Preparing, TrialOrder, TrialOutcome
from workers.errors import DataError
from workers.pack import loaded
from workers.report import loading_check

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LIMITS = LoadingLimits(memory_gib=1)


def base_with(folder: Path, **parts: Any) -> Path:
    """A tiny base whose tokenizer has other parts."""
    fast = build_tiny_tokenizer()
    inner: Tokenizer = fast.backend_tokenizer
    for name, part in parts.items():
        setattr(inner, name, part)
    return build_tiny_base(folder / "base", tokenizer=fast)


def panicking(folder: Path) -> Path:
    """Its regular expression is given up by the library, which panics."""
    return base_with(folder, pre_tokenizer=pre_tokenizers.Split(Regex(r"(?:a+a+)+b"), "isolated"))


def multiplying(folder: Path) -> Path:
    """A text becomes 10^16 times as long: no memory is enough, and the library aborts."""
    return base_with(folder, normalizer=normalizers.Sequence([normalizers.Replace("a", "a" * 100)] * 8))


def order_for(folder: Path, base: Path, **fields: Any) -> TrialOrder:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("b", "a" * 60))
    (folder / "d.jsonl").write_text(rows)
    path = str(folder / "d.jsonl")
    data = DataSpec.model_validate({"train": path, "eval": path, "max_length": 100})
    return replace(trial_order(folder, base, data=data), limits=LIMITS, **fields)


def test_a_tokenizer_that_panics_ends_the_study_and_not_the_worker(tmp_path: Path) -> None:
    """A panic is none of Python's exceptions."""
    outcome = Recorder().outcome(order_for(tmp_path, panicking(tmp_path)))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert outcome.reason == (
        f"{tmp_path / 'd.jsonl'}:2: 'text' cannot be rendered or tokenised: PanicException: "
        "Onig: Regex search error: retry-limit-in-match over."
    )


def test_a_panic_while_the_tokenizer_is_loaded_ends_the_study(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any row is read."""
    panic = _panic(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise panic

    monkeypatch.setattr("workers.base.base_model.AutoTokenizer.from_pretrained", broken)
    outcome = Recorder().outcome(order_for(tmp_path, tiny_base_dir))
    assert outcome.fatal_to_study
    assert outcome.reason.startswith(f"The tokenizer of the model {tiny_base_dir} could not be loaded")


def _panic(folder: Path) -> BaseException:
    tokenizer = Tokenizer.from_file(str(panicking(folder) / "tokenizer.json"))
    try:
        tokenizer.encode("a" * 60)
    except BaseException as error:  # noqa: BLE001 - that is what it is
        return error
    raise AssertionError("no panic")


_TRAIN = """
import pickle, sys, torch
from workers.pack.pack import Pack
from workers.contract import TrialOutcome
order = pickle.loads(open(sys.argv[1], "rb").read())
events = []
pack = Pack(events.append, device=torch.device("cpu"), slots=1)
pack.admit(order)
while pack.running_attempts:
    pack.step()
outcome = events[-1]
print(outcome.fatal_to_study, outcome.reason)
"""


def test_a_tokenizer_that_aborts_ends_the_worker_once_and_then_the_study(tmp_path: Path) -> None:
    """The first worker dies of it; the next one asks in a process of its own, and lives."""
    order = order_for(tmp_path, multiplying(tmp_path))
    answers = []
    for number, check in enumerate((False, True)):
        file = tmp_path / f"order-{number}"
        file.write_bytes(pickle.dumps(replace(order, check_loading=check)))
        answers.append(
            subprocess.run([sys.executable, "-c", _TRAIN, str(file)], capture_output=True, text=True)
        )
    first, second = answers
    assert first.returncode == -signal.SIGABRT
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith(
        "True A worker died before the study's first step. A process that only loads its tokenizer and "
        "data died as well, 2 times, while reading and tokenising the train data (SIGABRT, memory allocation "
        "of "
    )
    assert "aaaa" not in second.stdout


def test_a_healthy_study_is_checked_once_and_trains(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has loaded the data needs no further check."""
    checked: list[int] = []
    monkeypatch.setattr(loaded, "check_loading", lambda order: checked.append(order.attempt_id))
    recorder = Recorder()
    orders = [
        replace(trial_order(tmp_path, tiny_base_dir, attempt_id=number), limits=LIMITS, check_loading=True)
        for number in (1, 2)
    ]
    events = recorder.run(*orders)
    assert checked == [1]
    assert [o.status for o in of_type(events, TrialOutcome)] == [OutcomeStatus.COMPLETED] * 2
    assert "in a process of their own" in of_type(events, Preparing)[0].stage


def test_the_process_of_a_healthy_study_ends_well(tmp_path: Path, tiny_base_dir: Path) -> None:
    """And so does that of data with a fault, which is told where it is loaded."""
    order = replace(trial_order(tmp_path, tiny_base_dir), limits=LIMITS)
    loading_check.check_loading(order)
    Path(str(order.data.train)).write_text("no JSON\n")
    loading_check.check_loading(order)


@pytest.mark.parametrize(
    ("codes", "ends"),
    [([0], False), ([-9, 0], False), ([1], False), ([-9, -9], True), ([-6, -11], True)],
)
def test_the_process_must_end_twice(
    codes: list[int], ends: bool, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, somebody may have killed it; and what keeps the check from running says nothing of the study."""
    left = list(codes)
    monkeypatch.setattr(loading_check, "_run", lambda _: (left.pop(0), "model", ""))
    order = trial_order(tmp_path, tiny_base_dir)
    if ends:
        with pytest.raises(DataError, match=r"while loading the tokenizer \(SIG"):
            loading_check.check_loading(order)
    else:
        loading_check.check_loading(order)
    assert left == []


def test_memory_beyond_the_limit_while_rows_are_read_ends_the_study(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker goes on."""

    def hungry(*_: object) -> bytearray:
        return bytearray(3 * 2**30)

    monkeypatch.setattr("workers.data.rows.read_structures", hungry)
    outcome = Recorder().outcome(order_for(tmp_path, tiny_base_dir))
    assert outcome.fatal_to_study
    assert outcome.reason.startswith(
        f"{tmp_path / 'd.jsonl'}:1: the row cannot be read: this needs more than 1 GiB"
    )
    assert len(bytearray(3 * 2**30)) > 0, "the limit is lifted"
