"""The lines of a plan: a label and what it says. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search_spaces.data_report import Balance, Baseline, Count, SplitReport
from search_spaces.wording import counted
from service.plans.schemas import (
    Amount,
    ClusterPlan,
    MemoryPlan,
    Seconds,
    Span,
    TimePlan,
    TrainingPlan,
    TrialsPlan,
)
from service.wording.values import duration, moment, number, one_line

Line = tuple[str, str]
_FOUND_BY = {
    "both": "markers, verified",
    "markers": "narrower markers",
    "markers_unverified": "markers, unverified",
    "prefixes_despite_markers": "prefixes, not markers",
}
"""How the assistant's turns were found, in words: `search_spaces.data_report.TurnsFoundBy`."""


def trial_lines(trials: TrialsPlan) -> Iterator[Line]:
    """How many trials there are."""
    space = "in a continuous space"
    if trials.space_size is not None:
        space = f"of {trials.space_size:,} {'points' if trials.algorithm == 'grid' else 'configurations'}"
    yield "search", f"{counted(trials.search, 'trial')} by {trials.algorithm}, {space}"
    if trials.range_test:
        yield "range test", f"{counted(trials.range_test, 'sweep')} of the learning rate before it"
    if trials.repeats:
        yield (
            "repeats",
            f"up to {counted(trials.repeats, 'run')} of the best recipes with other seeds after it",
        )


def split_lines(split: SplitReport, *, of_language: bool = True) -> Iterator[Line]:
    """The train or the eval data.

    Args:
        split: Which.
        of_language: Whether tokens carry loss, and not labels, scores or pairs.
    """
    yield "rows", f"{split.rows:,}" if split.rows is not None else f"over {split.rows_counted:,}"
    if split.rows != split.rows_read:
        yield "rows read", f"{split.rows_read:,}"
    if split.faulty_rows:
        yield "faulty rows", f"{split.faulty_rows:,}"
    several = len(split.by_length) > 1
    for cut in split.by_length:
        at = f" at {cut.max_length:,}" if several else ""
        yield f"usable rows{at}", f"{cut.usable_rows:,}"
        yield f"truncated{at}", _share(cut.truncated_rows, cut.usable_rows)
        yield f"tokens{at}", f"{cut.tokens:,}"
        if of_language:
            yield f"carry loss{at}", _share(cut.supervised_tokens, cut.tokens)
    if split.median_tokens is not None:
        yield "tokens per row", f"{split.median_tokens:,} (median)"
        yield "", f"{split.p95_tokens:,} (95th percentile)"
        yield " ", f"{split.longest_tokens:,} (longest)"
    if split.targets is not None:
        yield "tokens per target", f"{split.targets.median:,} (median)"
        yield "  ", f"{split.targets.p95:,} (95th percentile)"
        yield "   ", f"{split.targets.longest:,} (longest)"
    if split.scores is not None:
        yield "scores", f"{number(split.scores.lowest)} to {number(split.scores.highest)}"
        yield "mean score", f"{number(split.scores.mean)} ± {number(split.scores.standard_deviation)}"
    if split.equal_pairs is not None:
        yield "equal pairs", f"{split.equal_pairs:,}"
    yield "duplicates", f"{split.duplicate_rows:,}"
    for found in split.turns_found_by:
        yield f"turns by {_FOUND_BY.get(found.value, found.value)}", f"{found.rows:,}"


def balance_line(balance: Balance) -> str:
    """How often each value occurs, in one line."""
    shown = [_frequency(count) for count in balance.most_frequent]
    more = balance.distinct - len(shown)
    prefix = "" if balance.column in ("completion", "label") else f"{balance.column}: "
    rarest = f"; the rarest is {_frequency(balance.rarest)}" if more > 0 and balance.rarest else ""
    return prefix + ", ".join(shown) + (f" and {more:,} more{rarest}" if more > 0 else "")


def _frequency(count: Count) -> str:
    share = f"{count.share:.0%}" if count.share >= 0.01 else f"{100 * count.share:.2g}%"
    return f"{one_line(count.value)} {share}"


def baseline_line(baseline: Baseline) -> str:
    """What one answer to every row reaches, in one line."""
    reached = ", ".join(f"{name} {number(value)}" for name, value in baseline.metrics.items())
    return f"{one_line(baseline.answer)} for every row: {reached}"


def training_lines(training: TrainingPlan) -> Iterator[Line]:
    """What is trained and evaluated."""
    about = "about " if training.estimated else ""
    yield "one epoch", f"{about}{span(training.examples_per_epoch)} examples"
    for name, trial in (("shortest trial", training.shortest), ("longest trial", training.longest)):
        yield (
            name,
            (
                f"{trial.examples:,} examples, {trial.tokens:,} tokens, {counted(trial.steps, 'step')} at"
                f" batch size {trial.batch_size}, {counted(trial.evaluations, 'evaluation')}"
            ),
        )
    if training.range_test is not None or training.repeats is not None:
        yield "search", _amount(training.search)
    if training.range_test is not None:
        yield "range test", f"{_amount(training.range_test)}, fewer where a sweep diverges"
    if training.repeats is not None:
        yield "repeats", f"{_amount(training.repeats)}, at most"
    yield "whole study", f"{span(training.total.examples)} examples"
    yield "", f"{span(training.total.tokens)} tokens"
    yield "evaluation", f"{span(training.total.evaluation_examples)} examples"
    rungs = training.rungs
    if rungs.every_examples is None:
        yield "rungs", "only at the end of each trial"
    else:
        yield "rungs", f"every {rungs.every_examples:,} examples, and at the end"
        if rungs.shared_count is None:
            yield (
                "common rungs",
                "unknown: a batch larger than the distance between two rungs skips some of them",
            )
        else:
            yield "common rungs", _listed(rungs.shared, rungs.shared_count)
    if rungs.pruning_algorithm != "none":
        yield "pruning", f"{rungs.pruning_algorithm}, at {_listed(rungs.pruning, rungs.pruning_count)}"


def memory_lines(memory: MemoryPlan) -> Iterator[Line]:
    """What is certainly needed, and what earlier trials used."""
    for base in memory.bases:
        where = ""
        if len({other.compute_dtype for other in memory.bases}) > 1:
            where = " (GPU)" if base.compute_dtype == "bfloat16" else " (CPU)"
        yield "base", f"{_size(base.bytes)} in {base.quantization}, the rest in {base.compute_dtype}{where}"
        if base.decoded_bytes:
            yield "", f"{_size(base.decoded_bytes)} more where workers keep its weights decoded"
    small, large = memory.smallest_adapter, memory.largest_adapter
    if small is not None and large is not None:
        # Alike in rank, they may differ in their modules or their optimizer.
        ranks = span(Span(at_least=small.lora_r, at_most=large.lora_r))
        size = _sizes(Span(at_least=small.bytes, at_most=large.bytes))
        yield "one adapter", f"{size} with gradient and optimizer state, rank {ranks}"
    if memory.one_trial_bytes is not None:
        yield "one trial", f"at least {_sizes(memory.one_trial_bytes)}, without activations"
    if memory.parallel_bytes is not None and memory.parallel_trials > 1:
        yield (
            f"{memory.parallel_trials} trials",
            f"at least {_sizes(memory.parallel_bytes)}, on one base",
        )
    if memory.unknown is not None:
        yield "unknown", memory.unknown
    peak = memory.earlier_peak
    if peak is not None:
        devices = f" on {', '.join(peak.devices)}" if peak.devices else ""
        yield "measured", f"at most {_size(peak.bytes)} in {counted(peak.trials, 'earlier trial')}{devices}"
    else:
        yield "measured", f"unknown: {memory.earlier_peak_unknown}"


def time_lines(time: TimePlan) -> Iterator[Line]:
    """How long workers train and evaluate."""
    if time.examples_per_second is not None:
        devices = f" on {', '.join(time.devices)}" if time.devices else ""
        data = "the same data" if time.same_data else "other data"
        yield (
            "measured",
            (
                f"{number(time.examples_per_second)} examples per second"
                f" ({'with evaluation' if time.includes_evaluation else 'without evaluation'}),"
                f" median of {counted(time.earlier_trials, 'earlier trial')} on {data}{devices}"
            ),
        )
    if time.shortest_trial is not None and time.longest_trial is not None:
        trial = Seconds(at_least=time.shortest_trial, at_most=time.longest_trial)
        yield "one trial", f"{_durations(trial)} of one worker"
    if time.worker_seconds is not None:
        yield "whole study", f"{_durations(time.worker_seconds)} of one worker, if no trial ends early"
    if time.wall_seconds is not None:
        yield "wall clock", _durations(time.wall_seconds)
    if time.unknown is not None:
        yield "unknown", time.unknown


def cluster_lines(cluster: ClusterPlan) -> Iterator[Line]:
    """What the cluster has for the study's workers."""
    if cluster.unknown is not None or cluster.nodes is None:
        yield "unknown", cluster.unknown or ""
        return
    has = f"{counted(cluster.nodes, 'node')}, {counted(cluster.cpus or 0, 'CPU')}"
    has = f"{has}, {counted(cluster.gpus or 0, 'GPU')}"
    yield "nodes", f"{has}, unchanged since {moment(cluster.seen_at)}"
    each = counted(cluster.gpus_per_worker, "GPU") if cluster.gpus_per_worker else "1 CPU core"
    yield "enough for", f"{counted(cluster.workers or 0, 'worker')} of {each} each"


def span(ends: Span) -> str:
    """`3 to 5`; one number where it is certain."""
    return _between(f"{ends.at_least:,}", f"{ends.at_most:,}")


def _amount(amount: Amount) -> str:
    return f"{span(amount.examples)} examples, {span(amount.tokens)} tokens"


def _listed(rungs: Sequence[int], in_all: int) -> str:
    if not in_all:
        return "none"
    more = f", ... ({in_all:,} in total)" if in_all > len(rungs) else ""
    return ", ".join(f"{rung:,}" for rung in rungs) + more


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _size(count: int) -> str:
    """Bytes in powers of 1,000, as `peak_memory_gb` counts them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _sizes(span: Span) -> str:
    return _between(_size(span.at_least), _size(span.at_most))


def _durations(seconds: Seconds) -> str:
    return _between(duration(seconds.at_least), duration(seconds.at_most))


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
