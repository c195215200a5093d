"""Families of models on every kind of task: in a pack as alone, as a script, and as saved.

The full product of families, tasks and quantizations writes `docs/reference/support.md`:
`python -m tests.scripts.support_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.families import FAMILIES, Kind, build_family
from tests.support.workers.family_parity import (
    RECIPES,
    examples_of,
    load_tiny,
    outcome_of,
    train,
)
from tests.support.workers.support_table import Cell, committed_reasons, committed_words, every_cell
from workers.base.heads import lies_in
from workers.errors import ModelError
from workers.lora.adapters import AdapterHost
from workers.training.evaluation import evaluate

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

_MAIN: dict[Kind, Task] = {
    "decoder": "causal_lm",
    "encoder": "sequence_classification",
    "encoder-decoder": "seq2seq_lm",
}
_KINDS: tuple[Task, ...] = ("causal_lm", "seq2seq_lm", "sequence_classification", "token_classification")
"""Each stands for its kind: regression and ranking have the heads of sequence_classification, and preference
the model of causal_lm."""


def in_the_regular_run(cell: Cell) -> bool:
    """Each family on each kind of task, and quantized on its main one; all tasks on one family."""
    name, task, quantization = cell
    if task == _MAIN[FAMILIES[name].kind]:
        return True
    return quantization == "none" and (task in _KINDS or name == "llama")


CELLS = [cell for cell in every_cell() if in_the_regular_run(cell)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A family's base, written at the first use."""
    root = tmp_path_factory.mktemp("families")

    def folder_of(name: str, *, dropout: bool = False) -> Path:
        folder = root / f"{name}-{dropout}"
        return folder if folder.exists() else build_family(name, folder, dropout=dropout)

    return folder_of


def test_the_table_of_support_has_every_family_and_task() -> None:
    assert set(committed_words()) == set(every_cell())


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_a_family_trains_packed_as_alone_and_as_a_script_does_and_the_table_says_so(
    cell: Cell, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    name, task, quantization = cell
    outcome = outcome_of(name, folder_of(name), task, quantization, tmp_path)
    assert outcome.word == committed_words()[cell]
    assert outcome.word != "refused" or outcome.reason in committed_reasons()


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_a_base_with_dropout_is_packed_once_it_is_off_and_else_draws_it_for_each_trial_alone(
    name: str, folder_of: Callable[..., Path]
) -> None:
    task: Task = _MAIN[FAMILIES[name].kind]
    examples = examples_of(task)
    folder = folder_of(name, dropout=True)
    off = AdapterHost(load_tiny(folder, task, "none", dropout="off"))
    assert (off.base.has_dropout, off.shares_passes) == (False, True)
    keep = AdapterHost(load_tiny(folder, task, "none"))
    assert (keep.base.has_dropout, keep.shares_passes) == (True, False)
    together = train(keep, examples, RECIPES)
    (alone,) = train(keep, examples, RECIPES[1:])
    (undropped,) = train(off, examples, RECIPES[1:])
    assert together[1].losses == alone.losses
    assert undropped.losses != alone.losses


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "sequence_classification"),
        ("roberta", "token_classification"),
        ("deberta_v2", "sequence_classification"),
        ("modernbert", "token_classification"),
        ("t5", "token_classification"),
    ],
)
def test_an_evaluated_row_does_not_depend_on_its_mates_or_their_length(
    name: str, task: Task, folder_of: Callable[..., Path]
) -> None:
    """An encoder attends both ways, so whatever leaks from padding shows."""
    base = load_tiny(folder_of(name), task, "none", dropout="off")
    host, examples = AdapterHost(base), examples_of(task)
    adapter = host.add("trial", RECIPES[0])
    adapter.master.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    (together,) = evaluate(host, [adapter], examples, token_budget=10**6)
    separate = [evaluate(host, [adapter], [one], token_budget=10**6)[0] for one in examples]
    torch.testing.assert_close(together.answers, torch.cat([one.answers for one in separate]))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "sequence_classification"),
        ("modernbert", "token_classification"),
        ("distilbert", "sequence_classification"),
        ("llama", "causal_lm"),
        ("gpt2", "causal_lm"),
        ("t5", "seq2seq_lm"),
        ("t5", "sequence_classification"),
        ("bart", "seq2seq_lm"),
    ],
)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_all_linear_layers_are_quantized_but_heads_and_what_is_tied(
    name: str, task: Task, quantization: str, folder_of: Callable[..., Path]
) -> None:
    """And but for `wo` of T5, which its architecture keeps in float32."""
    model = (base := load_tiny(folder_of(name), task, quantization)).model
    linear = (torch.nn.Linear, Conv1D)
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    paths = {path: module for path, module in model.named_modules() if isinstance(module, linear)}
    output = model.get_output_embeddings()
    spared = {
        path
        for path, module in paths.items()
        if module is output or lies_in(path, base.heads) or path.endswith(".wo")
    }
    assert {path for path, module in paths.items() if not isinstance(module, kinds)} == spared
    assert len(paths) > len(spared)
    embeddings = [model.get_input_embeddings(), *([output] if output is not None else [])]
    assert {module.weight.dtype for module in embeddings} == {torch.float32}


@pytest.mark.parametrize("name", ["bert", "modernbert", "t5", "llama"])
def test_heads_are_drawn_from_the_trials_seed_and_from_nothing_else(
    name: str, folder_of: Callable[..., Path]
) -> None:
    """Whatever was drawn before, also beside other trials, and by each architecture in its own way."""
    heads = []
    for earlier in (None, Recipe(seed=9)):
        torch.manual_seed(earlier is None)
        host = AdapterHost(load_tiny(folder_of(name), "token_classification", "none"))
        if earlier is not None:
            host.add("earlier", earlier)
        adapters = [host.add(f"trial-{seed}", Recipe(seed=seed)) for seed in (1, 2)]
        heads.append(
            [
                torch.cat(
                    [one.flatten() for path in host.base.new_heads for one in own.heads[path].parameters()]
                )
                for own in adapters
            ]
        )
    assert [torch.equal(*pair) for pair in zip(*heads, strict=True)] == [True, True]
    assert not torch.equal(*heads[0])


def test_a_pooler_that_the_checkpoint_has_is_adapted_in_a_pack(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    """It is given one token of each row."""
    model = AutoModelForSequenceClassification.from_pretrained(folder_of("bert"))
    folder = build_family("bert", tmp_path / "bert")
    model.bert.save_pretrained(folder)
    base = load_tiny(folder, "sequence_classification", "none")
    assert base.new_heads == ("classifier",)
    host = AdapterHost(base)
    recipes = [recipe.model_copy(update={"target_modules": "all-linear"}) for recipe in RECIPES]
    together = train(host, examples_of("sequence_classification"), recipes)
    assert host.shares_passes
    assert "bert.pooler.dense.lora_A.weight" in together[0].weights()
    for recipe, found in zip(recipes, together, strict=True):
        (alone,) = train(host, examples_of("sequence_classification"), [recipe])
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)


@pytest.mark.parametrize(("name", "positions"), [("roberta", 63), ("bert", 64), ("opt", 64), ("t5", None)])
def test_rows_are_as_long_as_the_models_positions_reach(
    name: str, positions: int | None, folder_of: Callable[..., Path]
) -> None:
    base = load_tiny(folder_of(name), _MAIN[FAMILIES[name].kind], "none")
    assert base.max_positions == positions
    ids = torch.full((1, positions or 80), 7)
    decoder = {"decoder_input_ids": ids} if name == "t5" else {}
    base.model(input_ids=ids, **decoder)


@pytest.mark.parametrize("task", ["causal_lm", "preference"])
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "bart"])
def test_models_that_see_what_they_are_to_predict_are_no_causal_models(
    name: str, task: Task, folder_of: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="is not a causal language model, and the task is"):
        load_tiny(folder_of(name), task, "none")


def test_a_head_that_the_checkpoint_lacks_is_no_reason_to_log(
    folder_of: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    load_tiny(folder_of("bert"), "sequence_classification", "none")
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_padding_is_the_models_own_token(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """RoBERTa counts positions by it, whatever a tokenizer that came from elsewhere calls padding."""
    folder = build_family("roberta", tmp_path / "roberta")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"pad_token_id": 0', '"pad_token_id": 1'))
    base = load_tiny(folder, "sequence_classification", "none")
    assert (base.pad_id, base.model.config.pad_token_id, base.tokenizer.pad_token_id) == (1, 1, 0)


def test_deberta_computes_in_float32_only(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("deberta")
    assert load_tiny(folder, "regression", "nf4").compute_dtype == torch.float32
    with pytest.raises(ModelError, match="to auto or float32"):
        load_tiny(folder, "regression", "nf4", compute_dtype="bfloat16")
