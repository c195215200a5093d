"""The metrics of the service, for Prometheus: what they are called and what their labels are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from service.metrics.measurements import Measurements, StudyMeasurements

_STUDY = ["study", "owner"]


def families(measured: Measurements) -> Iterator[Metric]:
    """Everything that was read in the database. All API processes of one database say the same."""
    yield from _totals(measured)
    yield from _of_studies(measured.studies)
    yield from _of_schedules(measured)


def _totals(measured: Measurements) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("nightsweep_studies", "Studies and range tests.", labels=["state"])
    _add(by_state, [], {str(state): many for state, many in measured.studies_by_state.items()})
    yield by_state
    for name, text, value in (
        (
            "oldest_queued_study_seconds",
            "How long the study that was queued first has waited; 0: none waits.",
            measured.oldest_queued_seconds,
        ),
        ("coordinators", "Coordinators that have written a heartbeat lately.", measured.coordinators),
        (
            "coordinators_in_trouble",
            "Those of them that cannot work, with a full disk for example.",
            measured.coordinators_in_trouble,
        ),
        ("devices_put_aside", "GPUs that get no trials.", measured.devices_put_aside),
        (
            "studies_without_series",
            "Studies that are active or have just ended, but too many to have series of their own.",
            measured.studies_left_out,
        ),
    ):
        yield GaugeMetricFamily(f"nightsweep_{name}", text, value=value)


def _of_studies(studies: tuple[StudyMeasurements, ...]) -> Iterator[Metric]:
    trials = GaugeMetricFamily("nightsweep_trials", "Trials, by state.", labels=[*_STUDY, "state"])
    lost = CounterMetricFamily(
        "nightsweep_lost_attempts", "Attempts whose worker was lost, by cause.", labels=[*_STUDY, "cause"]
    )
    tokens = CounterMetricFamily(
        "nightsweep_training_tokens",
        "Positions in training passes, by kind: useful or padding. What a loss undid counts once.",
        labels=[*_STUDY, "kind"],
    )
    gpu = CounterMetricFamily(
        "nightsweep_gpu_seconds", "Seconds in which GPUs had trials of the study.", labels=_STUDY
    )
    worker = CounterMetricFamily(
        "nightsweep_worker_seconds", "The same of all workers, on CPUs too.", labels=_STUDY
    )
    lease = GaugeMetricFamily(
        "nightsweep_lease_remaining_seconds",
        "Time until the coordinator's lease on the study runs out; below 0: nobody renews it.",
        labels=_STUDY,
    )
    pack = GaugeMetricFamily(
        "nightsweep_pack_trials", "Trials that a worker trains together.", labels=[*_STUDY, "worker"]
    )
    slots = GaugeMetricFamily(
        "nightsweep_pack_slots", "Trials that the worker wants at once.", labels=[*_STUDY, "worker"]
    )
    for study in studies:
        labels = [study.study, study.owner]
        _add(trials, labels, study.trials)
        _add(lost, labels, study.lost)
        useful = study.tokens
        _add(tokens, labels, {"useful": useful, "padding": max(0, study.padded_tokens - useful)})
        gpu.add_metric(labels, study.gpu_seconds)
        worker.add_metric(labels, study.worker_seconds)
        if study.lease_remaining is not None:
            lease.add_metric(labels, study.lease_remaining)
        _add(pack, labels, study.packs)
        _add(slots, labels, study.slots)
    yield from (trials, lost, tokens, gpu, worker, lease, pack, slots)


def _of_schedules(measured: Measurements) -> Iterator[Metric]:
    labels = ["schedule", "owner"]
    enabled = GaugeMetricFamily("nightsweep_schedule_enabled", "1: it fires.", labels=labels)
    following = GaugeMetricFamily(
        "nightsweep_schedule_next_firing_timestamp_seconds", "When it fires next.", labels=labels
    )
    last = GaugeMetricFamily(
        "nightsweep_schedule_last_firing_timestamp_seconds",
        "The instant that its latest sweep belongs to.",
        labels=labels,
    )
    for schedule in measured.schedules:
        names = [schedule.name, schedule.owner]
        enabled.add_metric(names, schedule.enabled)
        for family, at in ((following, schedule.next_fire_at), (last, schedule.last_fired_for)):
            if at is not None:
                family.add_metric(names, at.timestamp())
    yield from (enabled, following, last)


def _add(
    family: GaugeMetricFamily | CounterMetricFamily, labels: list[str], values: Mapping[str, float]
) -> None:
    for name, value in values.items():
        family.add_metric([*labels, name], value)
