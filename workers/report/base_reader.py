"""A base without its weights: its shapes, its tokenizer, and whatever loading it would be refused for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import ModelSpec
from search_spaces.tasks import Task
from workers.base.base_model import decoder_start_id, faults_of_loading, load_tokenizer
from workers.base.heads import Labels, row_end_id
from workers.base.loaded_weights import check_head_sizes
from workers.base.model_files import check_model_folder, confined_model, find_model_folder, is_local
from workers.base.quantization import compute_dtype_of
from workers.data.labels import needs_labels
from workers.device.memory import limited_memory
from workers.report.base_geometry import BaseGeometry, read_geometry


@dataclass(frozen=True)
class BaseReader:
    """What a base tells of rows, without its weights."""

    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    vocabulary_size: int
    max_positions: int | None
    task: Task = "causal_lm"
    labels: Labels | None = None
    row_end_id: int | None = None


def read_base(
    spec: ModelSpec, limits: LoadingLimits, task: Task = "causal_lm", labels: Labels | None = None
) -> tuple[BaseGeometry, BaseReader]:
    """A base's shapes and its tokenizer, without its weights.

    Args:
        spec: Which base.
        limits: What may be read, and how much memory that may take.
        task: What it is to be trained for.
        labels: Those of the train data; None: the task has none, or they are not known.

    Raises:
        ModelError: It cannot be used.
        DataError: The limit of memory is not enough.
    """
    local = is_local(spec)
    folder = find_model_folder(spec, weights=local)
    what = f"The model {spec.id} cannot be read"
    with (
        limited_memory(limits.memory_gib, what),
        confined_model(spec, limits.data_roots),
        faults_of_loading(what),
    ):
        check_model_folder(folder, spec.id, weights=local, task=task)
        geometry = read_geometry(folder, spec.id, task, labels)
        tokenizer = load_tokenizer(str(folder), spec.id)
        _check_outline(geometry, folder, spec, task, labels, weights=local)
    reader = BaseReader(
        spec,
        tokenizer,
        geometry.vocabulary_size,
        geometry.max_positions,
        task,
        labels,
        row_end_id(geometry.outline.config, task),
    )
    return geometry, reader


def _check_outline(
    geometry: BaseGeometry,
    folder: Path,
    spec: ModelSpec,
    task: Task,
    labels: Labels | None,
    *,
    weights: bool,
) -> None:
    """What loading the base would refuse, so far as its configuration and the sizes of its tensors tell."""
    config = geometry.outline.config
    compute_dtype_of(spec, torch.device("cpu"), config.model_type)
    if task == "seq2seq_lm":
        decoder_start_id(config, spec.id)
    if weights and geometry.heads and (labels is not None or not needs_labels(task)):
        pooler = [] if geometry.pooler is None else [geometry.pooler]
        check_head_sizes(folder, geometry.outline, [*pooler, *geometry.heads], spec.id)
