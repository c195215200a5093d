"""Generation: what plain PEFT and transformers write, whatever shares the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    T5Config,
)

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.models import (
    EOS,
    INITIALIZER_RANGE,
    build_tiny_base,
    build_tiny_gpt2,
    build_tiny_opt,
    build_tiny_tokenizer,
)
from workers.artifacts.folders import LocalFolder
from workers.base.base_model import LoadedBase, load_base, set_training
from workers.base.causal_attention import NAME
from workers.data.examples import Example, Seq2SeqExample
from workers.device.heartbeat import Heartbeat
from workers.errors import RowError
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import Form, RowsUnknownError
from workers.training.generation import decoded, generate, generation_lengths, prompt_of

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
NEW = 12
BUILDERS = {"llama": build_tiny_base, "gpt2": build_tiny_gpt2, "opt": build_tiny_opt}
TOKENIZER = build_tiny_tokenizer()


def build_encoder_decoder(folder: Path, family: str) -> Path:
    tokens = {
        "vocab_size": len(TOKENIZER),
        "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id,
        "decoder_start_token_id": TOKENIZER.pad_token_id,
    }
    if family == "t5":
        # Its own scale leaves tiny models that write one token over and over.
        config: Any = T5Config(
            **tokens, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, initializer_factor=3.0
        )
    else:
        sizes = {
            f"{part}_{name}": size
            for part in ("encoder", "decoder")
            for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
        }
        config = BartConfig(
            **tokens, **sizes, d_model=64, max_position_embeddings=64, init_std=INITIALIZER_RANGE
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def load_model(folder: Path, family: str, quantization: str) -> PreTrainedModel:
    """As anybody would."""
    auto = AutoModelForCausalLM if family in BUILDERS else AutoModelForSeq2SeqLM
    config = {
        "none": None,
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }[quantization]
    model: PreTrainedModel = auto.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    set_training(model, False)
    return model


def load(folder: Path, family: str, quantization: str = "none") -> LoadedBase:
    spec = ModelSpec.model_validate({"id": str(folder), "quantization": quantization})
    return load_base(spec, CPU, task="causal_lm" if family in BUILDERS else "seq2seq_lm")


def add_adapters(host: AdapterHost) -> list[Adapter]:
    """Three that have learned something."""
    recipes = [
        Recipe(lora_r=2, lora_dropout=0.5),
        Recipe(lora_r=8, target_modules="attention"),
        Recipe(lora_r=4, use_rslora=True),
    ]
    made = [host.add(f"t{k}", recipe) for k, recipe in enumerate(recipes)]
    for k, adapter in enumerate(made):
        adapter.master.data.normal_(std=0.15, generator=torch.Generator().manual_seed(k))
    return made


def random_prompts(count: int = 7, longest: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, 390, (length,), generator=generator) for length in lengths]


def lists(written: list[list[torch.Tensor]]) -> list[list[list[int]]]:
    return [[row.tolist() for row in own] for own in written]


def plainly(
    model: PreTrainedModel, prompts: Sequence[torch.Tensor], ends: Sequence[int], **asked: Any
) -> list[list[int]]:
    """By transformers' own `generate`, one prompt at a time: nothing is padded."""
    model.generation_config = (
        GenerationConfig()
    )  # the forced end of BART would be written over its last token
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(ends),
        pad_token_id=TOKENIZER.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        **asked,
    )
    rows = [model.generate(input_ids=prompt[None], generation_config=config)[0] for prompt in prompts]
    return [
        row[1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
        for row, prompt in zip(rows, prompts, strict=True)
    ]


@dataclass
class Case:
    """A base with three adapters, and what they write plainly."""

    host: AdapterHost
    adapters: list[Adapter]
    prompts: list[torch.Tensor]
    end: int
    """A token that ends some of the texts early."""
    expected: list[list[list[int]]]


@pytest.fixture(
    scope="module",
    params=[
        ("llama", "none"),
        ("llama", "nf4"),
        ("llama", "int8"),
        ("gpt2", "none"),
        ("gpt2", "nf4"),
        ("opt", "none"),
        ("t5", "none"),
        ("t5", "nf4"),
        ("bart", "none"),
    ],
    ids="-".join,
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, quantization = request.param
    root = tmp_path_factory.mktemp("generation")
    folder = BUILDERS[family](root / "base") if family in BUILDERS else root / "base"
    if family not in BUILDERS:
        build_encoder_decoder(folder, family)
    host = AdapterHost(load(folder, family, quantization))
    adapters, prompts = add_adapters(host), random_prompts()
    for adapter in adapters:
        LocalFolder(root).put_folder(adapter.name, host.files(adapter.name))
    model = load_model(folder, family, quantization)
    peft = PeftModel.from_pretrained(model, root / "t0", adapter_name="t0")
    set_training(peft, False)
    eos = TOKENIZER.eos_token_id
    end = max(plainly(model, prompts, [eos]), key=len)[NEW // 2]
    expected = []
    for adapter in adapters:
        if adapter.name != "t0":
            peft.load_adapter(root / adapter.name, adapter.name)
        peft.set_adapter(adapter.name)
        set_training(peft, False)
        expected.append(plainly(model, prompts, [eos, end]))
    return Case(host, adapters, prompts, end, expected)


@pytest.mark.parametrize("token_budget", [70, 10_000])
def test_adapters_write_together_what_each_writes_by_plain_peft_and_transformers(
    case: Case, token_budget: int
) -> None:
    found = generate(
        case.host,
        case.adapters,
        case.prompts,
        max_new_tokens=NEW,
        token_budget=token_budget,
        ends=[case.end],
    )
    assert lists(found) == case.expected


def test_the_cases_tell_adapters_and_lengths_apart(case: Case) -> None:
    """Else equality would say nothing."""
    assert case.expected[0] != case.expected[1] != case.expected[2] != case.expected[0]
    assert len({len(text) for own in case.expected for text in own}) > 1
    assert max(len(set(text)) for own in case.expected for text in own) > 2


def test_an_adapter_alone_writes_the_same_from_one_prompt_at_a_time(case: Case) -> None:
    found = [
        generate(case.host, [adapter], case.prompts, max_new_tokens=NEW, token_budget=1, ends=[case.end])[0]
        for adapter in case.adapters
    ]
    assert lists(found) == case.expected


@pytest.fixture(scope="module")
def base(odd_base_dir: Path) -> LoadedBase:
    """A quantized base whose layers would crash in bitsandbytes' own evaluation mode on some CPUs."""
    return load_base(ModelSpec(id=str(odd_base_dir)), CPU)


@pytest.fixture
def host(base: LoadedBase) -> Iterator[AdapterHost]:
    host = AdapterHost(base)
    yield host
    for name in list(host._names):
        host.remove(name)


@pytest.fixture
def adapters(host: AdapterHost) -> list[Adapter]:
    return add_adapters(host)


def write(host: AdapterHost, adapters: Sequence[Adapter], **options: Any) -> list[list[list[int]]]:
    arguments = {"max_new_tokens": NEW, "token_budget": 10_000, **options}
    return lists(generate(host, adapters, arguments.pop("prompts", random_prompts()), **arguments))


class Passes:
    """Notes the shape of each pass that the model runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._handle = model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.shapes.append((inputs[0].shape[0], inputs[0].shape[1]))

    @property
    def prompts(self) -> list[tuple[int, int]]:
        return [(rows, tokens) for rows, tokens in self.shapes if tokens > 1]

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_error: object) -> None:
        self._handle.remove()


def test_each_prompt_is_read_once_and_then_one_token_at_a_time(
    host: AdapterHost, adapters: list[Adapter]
) -> None:
    with Passes(host.base.model) as passes:
        found = write(host, adapters)
    longest = max(len(prompt) for prompt in random_prompts())
    new = max(len(text) for own in found for text in own)
    assert passes.shapes == [(3 * 7, longest), *[(3 * 7, 1)] * (new - 1)]


@pytest.mark.parametrize("token_budget", [40, 100, 150])
def test_batches_hold_prompts_and_new_tokens_within_the_budget_longest_first(
    host: AdapterHost, adapters: list[Adapter], token_budget: int
) -> None:
    with Passes(host.base.model) as passes:
        write(host, adapters, token_budget=token_budget)
    assert max(rows * (tokens + NEW) for rows, tokens in passes.prompts) <= token_budget
    assert passes.prompts[0][1] == max(len(prompt) for prompt in random_prompts())
    assert sum(rows for rows, _tokens in passes.prompts) == 3 * 7


def test_equal_prompts_are_written_from_once(host: AdapterHost, adapters: list[Adapter]) -> None:
    prompts = random_prompts(3)
    with Passes(host.base.model) as passes:
        found = write(host, adapters[:1], prompts=[*prompts, prompts[1].clone()])
    assert [rows for rows, _tokens in passes.prompts] == [3]
    assert found[0][3] == found[0][1]


def test_a_base_whose_rows_change_each_other_writes_one_adapter_at_a_time(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(host, adapters)
    monkeypatch.setattr(LoadedBase, "rows_independent", property(lambda _base: False))
    with Passes(host.base.model) as passes:
        assert write(host, adapters) == expected
    assert [rows for rows, _tokens in passes.prompts] == [7, 7, 7]


def test_where_a_layer_does_not_know_its_rows_adapters_write_one_at_a_time(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows in the first shared pass; from then on the host knows."""
    expected = write(host, adapters)
    by_rows = type(host.multi_lora)._by_rows

    def forget_rows(self: Any, x: torch.Tensor, lora_pass: Any) -> torch.Tensor:
        if len(lora_pass.groups) > 1:
            return by_rows(self, x.flatten(0, 1)[1:], lora_pass)
        return by_rows(self, x, lora_pass)

    monkeypatch.setattr(type(host.multi_lora), "_by_rows", forget_rows)
    with Passes(host.base.model) as passes:
        assert write(host, adapters) == expected
        assert write(host, adapters) == expected
    assert [rows for rows, _tokens in passes.prompts] == [21, 7, 7, 7, 7, 7, 7]


def test_a_layer_that_does_not_even_know_the_rows_of_one_trial_is_an_error(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Any, _x: torch.Tensor, _lora_pass: Any) -> torch.Tensor:
        raise RowsUnknownError("no rows")

    monkeypatch.setattr(type(host.multi_lora), "_by_rows", refuse)
    with pytest.raises(RowsUnknownError):
        write(host, adapters[:1])


def model_state(host: AdapterHost) -> dict[str, Any]:
    """All that generation touches on its way, and what it must not touch."""
    model = host.base.model
    return {
        "attention": {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")},
        "cache": model.config.use_cache,
        "generation": id(model.generation_config),
        "asked": model.generation_config.to_dict(),
        "hooks": len(model._forward_pre_hooks),
        "pass": host.multi_lora._running,
        "quantized": {m.training for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)},
        "weights": [parameter.detach().double().sum().item() for parameter in model.parameters()],
        "random": torch.get_rng_state().tolist(),
    }


def test_the_model_is_afterwards_what_it_was(host: AdapterHost, adapters: list[Adapter]) -> None:
    before = model_state(host)
    assert before["attention"] == {NAME}
    write(host, adapters)
    assert model_state(host) == before
    assert before["quantized"] == {True}
    assert host.base.model.training is False


def test_running_out_of_memory_is_for_the_caller_to_mend_and_leaves_the_model_as_it_was(
    host: AdapterHost, adapters: list[Adapter]
) -> None:
    """In the middle of a text."""
    before = model_state(host)
    steps = 0

    def run_out(*_args: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise torch.OutOfMemoryError("out of memory")

    handle = host.base.model.get_input_embeddings().register_forward_hook(run_out)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            write(host, adapters)
    finally:
        handle.remove()
    assert model_state(host) == before


def test_the_checkpoints_own_wishes_do_not_count_but_for_its_ends(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(host, adapters)
    end = expected[0][0][3]
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        num_beams=3,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        min_new_tokens=NEW,
        forced_eos_token_id=7,
        suppress_tokens=expected[0][1][:1],
        max_length=4,
        use_cache=False,
        eos_token_id=[TOKENIZER.eos_token_id, end],
    )
    monkeypatch.setattr(host.base.model, "generation_config", own)
    with Passes(host.base.model) as passes:
        found = write(host, adapters)
    assert found == [
        [text[: text.index(end) + 1] if end in text else text for text in own] for own in expected
    ]
    assert {rows for rows, _tokens in passes.shapes} == {21}
    assert [tokens for _rows, tokens in passes.shapes[1:]] == [1] * (len(passes.shapes) - 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_leaves_what_its_pack_mates_write(
    host: AdapterHost, adapters: list[Adapter], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(host, adapters)
    adapters[2].master.data[3] = value
    for form in get_args(Form):
        monkeypatch.setattr(host, "choose_form", lambda _groups, form=form: form)
        assert write(host, adapters)[:2] == expected[:2]


def test_a_text_ends_where_the_base_has_no_more_positions(tmp_path: Path) -> None:
    """In GPT-2, one token more would be an error; the others write on."""
    base = load(build_tiny_gpt2(tmp_path / "base"), "gpt2")
    host = AdapterHost(base)
    adapters = add_adapters(host)
    prompts = [*random_prompts(3), torch.arange(4, 254), torch.arange(4, 256)]
    lengths = generation_lengths(base, prompts, NEW)
    assert lengths == [*((len(prompt) + NEW, NEW) for prompt in prompts[:3]), (256, 6), (256, 4)]
    with Passes(base.model) as passes:
        found = write(host, adapters, prompts=prompts)
    assert [[len(text) for text in own] for own in found] == [[NEW, NEW, NEW, 6, 4]] * 3
    assert [shape for shape in passes.prompts if shape[1] > 200] == [(3, 252), (3, 250)]
    assert [own[:3] for own in found] == write(host, adapters, prompts=prompts[:3])


class Beats(Heartbeat):
    """Counts signs of life, and the kinds of passes."""

    def __init__(self) -> None:
        super().__init__(training_s=math.inf, loading_s=math.inf)
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1
        super().beat()


def test_each_token_is_a_sign_of_life(host: AdapterHost, adapters: list[Adapter]) -> None:
    heartbeat = Beats()
    found = write(host, adapters, heartbeat=heartbeat)
    assert heartbeat.beats == max(len(text) for own in found for text in own)
    assert heartbeat._longest.keys() == {"generation"}


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def example(*pieces: tuple[str, bool]) -> Example:
    """Of pieces of text, each supervised or not."""
    input_ids: list[int] = []
    labels: list[int] = []
    for text, supervised in pieces:
        input_ids += ids(text)
        labels += ids(text) if supervised else [-100] * len(ids(text))
    return Example(torch.tensor(input_ids), torch.tensor([-100, *labels[1:]]))


def test_a_prompt_is_what_stands_before_the_loss() -> None:
    prompt = prompt_of(example(("turn on the lamp", False), (f" on{EOS}", True)), TOKENIZER)
    assert prompt.input_ids.tolist() == ids("turn on the lamp")
    assert (prompt.reference, prompt.end) == (" on", TOKENIZER.eos_token_id)


def test_the_reference_of_a_conversation_is_its_last_turn_with_loss() -> None:
    turns = (
        ("one", False),
        (f"first{EOS}", True),
        ("two", False),
        (f"second{EOS}", True),
        ("\nthree", False),
    )
    prompt = prompt_of(example(*turns), TOKENIZER)
    assert prompt.input_ids.tolist() == [*ids("one"), *ids(f"first{EOS}"), *ids("two")]
    assert prompt.reference == "second"


def test_a_reference_that_was_cut_names_no_end() -> None:
    assert prompt_of(example(("turn on", False), (" the lamp", True)), TOKENIZER).end is None


def test_of_a_source_and_a_target_those_are_prompt_and_reference() -> None:
    pair = Seq2SeqExample(torch.tensor(ids(f"name[x]{EOS}")), torch.tensor(ids(f"x is a name{EOS}")))
    prompt = prompt_of(pair, TOKENIZER)
    assert prompt.input_ids is pair.input_ids
    assert (prompt.reference, prompt.end) == ("x is a name", TOKENIZER.eos_token_id)


def test_a_row_with_loss_everywhere_has_no_prompt() -> None:
    with pytest.raises(RowError, match="The row has no prompt to generate from: all of it carries loss"):
        prompt_of(example((f"all of this{EOS}", True)), TOKENIZER)


def test_equal_tokens_have_equal_keys() -> None:
    one, same, other = (
        prompt_of(example((prompt, False), (" x", True)), TOKENIZER)
        for prompt in ("turn on", "turn on", "turn off")
    )
    assert one.key == same.key != other.key


@given(
    turns=st.lists(st.tuples(st.integers(2, 6), st.integers(1, 6)), min_size=1, max_size=4),
    trailing=st.integers(0, 3),
)
def test_prompt_and_reference_are_neighbours_in_the_row(turns: list[tuple[int, int]], trailing: int) -> None:
    flags = [flag for masked, own in turns for flag in [False] * masked + [True] * own] + [False] * trailing
    input_ids = torch.arange(10, 10 + len(flags))
    labels = torch.where(torch.tensor(flags), input_ids, -100)
    prompt = prompt_of(Example(input_ids, labels), TOKENIZER)
    start = len(flags) - trailing - turns[-1][1]
    assert prompt.input_ids.tolist() == input_ids[:start].tolist()
    assert prompt.reference == decoded(TOKENIZER, input_ids[start : len(flags) - trailing])
