"""Multi-LoRA on one layer: every form gives the numbers of a naive reference, each row its own adapter's.

One file, since every test is about the same randomly drawn layer and its naive reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.lora.bank import Bank, Span
from workers.lora.lora_dropout import keep_scale, row_keys
from workers.lora.multi_lora import Form, LayerAdapter, MultiLora, MultiLoraPass, RowGroup, RowsUnknownError

CPU = torch.device("cpu")
FORMS: tuple[Form, ...] = get_args(Form)

every_form = pytest.mark.parametrize("form", FORMS)
bounded = settings(deadline=None, derandomize=True, database=None, max_examples=50)

Tensors = dict[str, torch.Tensor]


class Given:
    """A base layer that returns what it was given, so that its output's gradient can be looked at."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output

    def base_layer(self, _x: torch.Tensor) -> torch.Tensor:
        return self.output

    def forward(self, _x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a pass is running, and this is not its forward")


@dataclass(frozen=True)
class Trial:
    """The rows of one adapter; without rank the adapter misses the layer."""

    rows: int
    rank: int | None
    alpha: float = 8.0
    rslora: bool = False
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        assert self.rank is not None
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Problem:
    """What one layer is given in one pass."""

    trials: tuple[Trial, ...]
    tokens: int = 4
    d_in: int = 6
    d_out: int = 5
    seed: int = 0
    step: int = 0
    number: int = 0
    permuted: bool = False
    """Whether tensors come as views of [tokens, rows, features]."""

    @property
    def rows(self) -> int:
        return sum(trial.rows for trial in self.trials)

    def spans(self) -> Iterator[tuple[int, Trial, slice]]:
        start = 0
        for k, trial in enumerate(self.trials):
            yield k, trial, slice(start, start + trial.rows)
            start += trial.rows

    def keys(self, k: int) -> list[int]:
        return row_keys(self.seed + k, self.step, range(self.trials[k].rows))

    def tensors(self) -> Tensors:
        """x, base, the output's gradient g, and each adapter's A [r, d_in] and B [r, d_out]."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        drawn = {
            name: draw(self.tokens, self.rows, width).transpose(0, 1)
            if self.permuted
            else draw(self.rows, self.tokens, width)
            for name, width in (("x", self.d_in), ("base", self.d_out), ("g", self.d_out))
        }
        for k, trial in enumerate(self.trials):
            if trial.rank is not None:
                drawn |= {f"a{k}": draw(trial.rank, self.d_in), f"b{k}": draw(trial.rank, self.d_out)}
        return drawn


@st.composite
def problems(draw: st.DrawFn, *, dropout: bool = False) -> Problem:
    """Ranks of which some are often the same."""
    ranks = st.sampled_from([1, 2, 4, 4, 4, 9]) | st.none()
    widths = st.integers(1, 24) | st.sampled_from([4, 8, 16])
    trials = st.builds(
        Trial,
        rows=st.integers(1, 4),
        rank=ranks,
        alpha=st.sampled_from([0.5, 1.0, 16.0, 64.0]),
        rslora=st.booleans(),
        dropout=st.sampled_from([0.0, 0.05, 0.5, 0.9]) if dropout else st.just(0.0),
    )
    return draw(
        st.builds(
            Problem,
            trials=st.lists(trials, min_size=1, max_size=5).map(tuple),
            tokens=st.integers(1, 7),
            d_in=widths,
            d_out=widths,
            seed=st.integers(0, 2**20),
            step=st.integers(0, 3),
            number=st.integers(0, 300),
            permuted=st.booleans(),
        )
    )


def reference(problem: Problem, tensors: Tensors, *, magnitude: bool = False) -> Tensors:
    """Output and gradients by plain autograd in float64, row after row.

    With `magnitude`, of the absolute values: what the sums would be if nothing cancelled, and so what
    rounding is to be measured by.
    """
    values = {name: tensor.double() for name, tensor in tensors.items()}
    if magnitude:
        values = {name: tensor.abs() for name, tensor in values.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in values.items() if name != "g"}
    rows = []
    for k, trial, span in problem.spans():
        for own, row in enumerate(range(span.start, span.stop)):
            x = leaves["x"][row]
            if trial.rank is None:
                rows.append(leaves["base"][row])
                continue
            if trial.dropout:
                key, rate = torch.tensor(problem.keys(k)[own : own + 1]), torch.tensor([trial.dropout])
                shape = (problem.number, problem.tokens, problem.d_in)
                x = keep_scale(key, *shape, rate, torch.float32)[0].double() * x
            rows.append(leaves["base"][row] + trial.scale * x @ leaves[f"a{k}"].t() @ leaves[f"b{k}"])
    output = torch.stack(rows)
    (output * values["g"]).sum().backward()
    gradients = {name: leaf.grad if leaf.grad is not None else leaf * 0 for name, leaf in leaves.items()}
    return {"output": output.detach(), **{name: value.detach() for name, value in gradients.items()}}


def layer_adapters(problem: Problem, tensors: Tensors) -> dict[int, LayerAdapter]:
    """Those of one rank in neighbouring slots, behind a free one of numbers that nobody may read."""
    found = {}
    for rank in {trial.rank for trial in problem.trials} - {None}:
        mine = [k for k, trial in enumerate(problem.trials) if trial.rank == rank]
        assert rank is not None
        span = Span(16, rank, problem.d_in, problem.d_out)
        bank = Bank.of(span.stop, len(mine) + 1, CPU)
        bank.weights.fill_(math.nan)
        bank.gradients.zero_()
        for row, k in enumerate(mine, 1):
            found[k] = LayerAdapter(bank, row, span, problem.trials[k].scale)
            found[k].a.copy_(tensors[f"a{k}"])
            found[k].b.copy_(tensors[f"b{k}"])
    return found


def run(
    problem: Problem,
    tensors: Tensors,
    form: Form,
    *,
    compute: torch.dtype = torch.float32,
    adapters: dict[int, LayerAdapter] | None = None,
    shape: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    look: Callable[[MultiLoraPass], None] = lambda _lora_pass: None,
) -> Tensors:
    """Output and gradients of a multi-LoRA pass, by the names of `reference`."""
    adapters = layer_adapters(problem, tensors) if adapters is None else adapters
    groups = [
        RowGroup(
            {problem.number: adapters[k]} if k in adapters else {},
            trial.rows,
            trial.dropout,
            problem.keys(k) if trial.dropout else (),
        )
        for k, trial in enumerate(problem.trials)
    ]
    x, base = (tensors[name].detach().requires_grad_() for name in ("x", "base"))
    layer = Given(shape(base))
    lora = MultiLora(compute)
    lora.take_over(layer, problem.number)
    with lora.running(groups, tokens=problem.tokens, form=form, device=CPU) as lora_pass:
        output = layer.forward(shape(x))
        output.backward(shape(tensors["g"]))
        look(lora_pass)
    found = {"output": output.detach(), "base": base.grad}
    found["x"] = torch.zeros_like(x) if x.grad is None else x.grad
    for k, adapter in adapters.items():
        found |= {f"a{k}": adapter.grad_a, f"b{k}": adapter.grad_b}
    return found


def assert_equal(
    found: Tensors, problem: Problem, tensors: Tensors, *, times: int = 1, relative: float = 1e-5
) -> None:
    expected = reference(problem, tensors)
    size = reference(problem, tensors, magnitude=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double().view_as(value) - times * value).abs()
        assert (error <= relative * times * size[name]).all(), name


@every_form
@bounded
@given(problem=problems())
def test_output_and_gradients_are_those_of_each_row_alone(form: Form, problem: Problem) -> None:
    tensors = problem.tensors()
    assert_equal(run(problem, tensors, form), problem, tensors)


@every_form
@bounded
@given(problem=problems(dropout=True))
def test_every_row_has_its_own_dropout_at_its_own_rate(form: Form, problem: Problem) -> None:
    tensors = problem.tensors()
    assert_equal(run(problem, tensors, form), problem, tensors)


@every_form
@bounded
@given(problem=problems(dropout=True), times=st.integers(2, 3))
def test_passes_add_to_the_gradients_that_are_there(form: Form, problem: Problem, times: int) -> None:
    tensors = problem.tensors()
    adapters = layer_adapters(problem, tensors)
    for _ in range(times):
        found = run(problem, tensors, form, adapters=adapters)
    once = run(problem, tensors, form)
    multiples = {name: times * once[name] for name in ("output", "x", "base")}
    assert_equal(found | multiples, problem, tensors, times=times)


@every_form
@bounded
@given(problem=problems(dropout=True), order=st.randoms(use_true_random=False))
def test_a_trials_numbers_do_not_depend_on_its_pack_mates(form: Form, problem: Problem, order: Any) -> None:
    """Alone, and anywhere among any others, to rounding; dropout is by the row's key."""
    tensors = problem.tensors()
    lora_pass = run(problem, tensors, form)
    k, trial, span = order.choice(list(problem.spans()))
    alone = replace(problem, trials=(trial,), seed=problem.seed + k)
    names = {"a0": f"a{k}", "b0": f"b{k}"} if trial.rank is not None else {}
    mine = {name: tensors[name][span] for name in ("x", "base", "g")}
    mine |= {own: tensors[name] for own, name in names.items()}
    found = {name: lora_pass[name][span] for name in ("output", "x", "base")}
    found |= {own: lora_pass[name] for own, name in names.items()}
    assert_equal(found, alone, mine)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    ("trials", "batched", "grouped"),
    [
        ([(2, 4), (2, 4), (2, 4)], [[2, 2, 2]], [[2, 2, 2]]),
        ([(2, 4), (1, 4), (1, 4)], [[2], [1, 1]], [[2, 1, 1]]),
        ([(2, 4), (3, None), (1, None), (2, 4)], [[2], [], [2]], [[2], [], [2]]),
        ([(2, 4), (2, 2), (2, 4), (1, 4)], [[2], [2], [2], [1]], [[2], [2], [2, 1]]),
    ],
)
def test_neighbouring_slots_are_taken_in_one_product_where_the_form_allows_it(
    trials: list[tuple[int, int | None]], batched: list[list[int]], grouped: list[list[int]], permuted: bool
) -> None:
    """Rows and rank of each trial; the rows of each product, none where they have no adapter."""
    drawn = tuple(Trial(*trial, alpha=k + 1.0, dropout=0.2 * k) for k, trial in enumerate(trials))
    problem = Problem(drawn, d_in=8, d_out=4, number=3, permuted=permuted)
    tensors = problem.tensors()
    forms: list[tuple[Form, list[list[int]]]] = [("batched", batched), ("grouped", grouped)]
    for form, expected in forms:
        found = []

        def look(lora_pass: MultiLoraPass, found: list[list[int]] = found) -> None:
            for _rows, stretch in lora_pass.stretches(problem.number):
                found.append([] if stretch is None else list(stretch.rows.counts))

        assert_equal(run(problem, tensors, form, look=look), problem, tensors)
        assert found == expected


@pytest.mark.parametrize("form", ["batched", "grouped"])
def test_nothing_of_a_bank_is_copied(form: Form) -> None:
    problem = Problem((Trial(2, 3), Trial(2, 3)))
    adapters = layer_adapters(problem, problem.tensors())

    def look(lora_pass: MultiLoraPass) -> None:
        ((_rows, stretch),) = lora_pass.stretches(problem.number)
        assert stretch is not None
        for name in ("a", "b", "grad_a", "grad_b"):
            matrices, first = getattr(stretch, name), getattr(adapters[0], name)
            assert matrices.data_ptr() == first.data_ptr()
            assert torch.equal(matrices[1], getattr(adapters[1], name))

    run(problem, problem.tensors(), form, adapters=adapters, look=look)


@every_form
def test_products_wider_than_the_base_leave_the_outputs_dtype(form: Form) -> None:
    problem = Problem((Trial(2, 3), Trial(2, 4)))
    tensors = problem.tensors()
    tensors |= {name: tensors[name].bfloat16() for name in ("x", "base", "g")}
    found = run(problem, tensors, form, compute=torch.float32)
    assert found["output"].dtype == torch.bfloat16
    assert_equal(found, problem, tensors, relative=2e-2)


@every_form
def test_layers_of_one_pass_are_kept_apart(form: Form) -> None:
    """Layers with other adapters, widths and ranks; two of them with the same scales share them."""
    trials = (Trial(2, 2), Trial(1, 4, alpha=3.0), Trial(3, 1))
    layers = [
        Problem(trials, number=0, seed=1),
        Problem(trials, number=1, seed=2, d_in=9, d_out=3),
        Problem((trials[0], replace(trials[1], rank=None), trials[2]), number=2, seed=3),
        Problem((replace(trials[0], rank=3), *trials[1:]), number=3, seed=4),
    ]
    tensors = [layer.tensors() for layer in layers]
    adapters = [layer_adapters(*pair) for pair in zip(layers, tensors, strict=True)]
    groups = [
        RowGroup({n: own[k] for n, own in enumerate(adapters) if k in own}, trial.rows)
        for k, trial in enumerate(trials)
    ]
    lora = MultiLora(torch.float32)
    xs = [own["x"].requires_grad_() for own in tensors]
    bases = [own["base"].requires_grad_() for own in tensors]
    outputs = []
    with lora.running(groups, tokens=4, form=form, device=CPU):
        for number, (x, base) in enumerate(zip(xs, bases, strict=True)):
            layer = Given(base)
            lora.take_over(layer, number)
            outputs.append(layer.forward(x))
        torch.autograd.backward(outputs, [own["g"] for own in tensors])
    for number, layer in enumerate(layers):
        found = {"output": outputs[number].detach(), "x": xs[number].grad, "base": bases[number].grad}
        for k, own in adapters[number].items():
            found |= {f"a{k}": own.grad_a, f"b{k}": own.grad_b}
        assert_equal(found, layer, {name: value.detach() for name, value in tensors[number].items()})


POISONED = Problem((Trial(2, 3), Trial(1, 4, alpha=3.0), Trial(2, 2)), seed=7)
KINDS = ["x", "base", "g", "a1", "b1"]


def poisoned(kind: str, value: float) -> Tensors:
    """A single number of the second trial is not finite."""
    tensors = POISONED.tensors()
    tensors[kind][2 if kind in ("x", "base", "g") else 0].view(-1)[1] = value
    return tensors


def others(found: Tensors) -> Tensors:
    """What is not the second trial's."""
    rows = {name: found[name][[0, 1, 3, 4]] for name in ("output", "x", "base")}
    return rows | {name: found[name] for name in ("a0", "b0", "a2", "b2")}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
@every_form
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_not_finite_in_one_trial_changes_no_bit_of_the_others(
    form: Form, kind: str, value: float, dropout: float
) -> None:
    problem = replace(POISONED, trials=tuple(replace(t, dropout=dropout) for t in POISONED.trials))
    expected = others(run(problem, POISONED.tensors(), form))
    found = run(problem, poisoned(kind, value), form)
    assert not all(tensor.isfinite().all() for tensor in found.values())
    assert {n: t.tolist() for n, t in others(found).items()} == {n: t.tolist() for n, t in expected.items()}


@every_form
@pytest.mark.parametrize(
    ("x_dtype", "base_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float32, torch.float32)],
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_in_bfloat16_the_products_are_rounded_and_dtypes_and_float32_gradients_stay(
    form: Form, x_dtype: torch.dtype, base_dtype: torch.dtype, dropout: float
) -> None:
    trials = (Trial(2, 3, dropout=dropout), Trial(1, None), Trial(2, 8, rslora=True))
    problem = Problem(trials, d_in=32, d_out=16, tokens=8)
    tensors = problem.tensors()
    tensors |= {"x": tensors["x"].to(x_dtype), "base": tensors["base"].to(base_dtype)}
    tensors["g"] = tensors["g"].to(base_dtype)
    found = run(problem, tensors, form, compute=torch.bfloat16)
    dtypes = dict.fromkeys(found, torch.float32) | {"output": base_dtype, "x": x_dtype, "base": base_dtype}
    assert {name: tensor.dtype for name, tensor in found.items()} == dtypes
    assert_equal(found, problem, tensors, relative=2e-2)
    # A row without an adapter is the base's own, bit for bit.
    assert torch.equal(found["output"][2], tensors["base"][2])


def flatten(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(0, 1)


@every_form
@bounded
@given(problem=problems(dropout=True))
def test_rows_that_come_as_one_are_told_apart(form: Form, problem: Problem) -> None:
    """As in OPT's MLP: [rows * tokens, features]."""
    tensors = problem.tensors()
    assert_equal(run(problem, tensors, form, shape=flatten), problem, tensors)


def some_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """Five of a pass's tokens, as an expert is given that the others were not routed to."""
    return tensor.flatten(0, 1)[:5]


def routed(
    trials: Sequence[Trial], form: Form = "looped"
) -> tuple[MultiLora, Callable[[], Tensors], Problem, Tensors]:
    """A layer that is given some of the tokens of a pass."""
    problem = Problem(tuple(trials), seed=3)
    tensors = problem.tensors()
    adapters = layer_adapters(problem, tensors)
    x, base = (some_tokens(tensors[name]).requires_grad_() for name in ("x", "base"))
    layer = Given(base)
    lora = MultiLora(torch.float32)
    lora.take_over(layer, 0)
    groups = [
        RowGroup({0: adapters[k]}, trial.rows, trial.dropout, problem.keys(k))
        for k, trial in enumerate(trials)
    ]

    def forward() -> Tensors:
        with lora.running(groups, tokens=problem.tokens, form=form, device=CPU):
            output = layer.forward(x)
            output.backward(some_tokens(tensors["g"]))
        found = {"output": output.detach(), "x": x.grad, "base": base.grad}
        return found | {"a0": adapters[0].grad_a, "b0": adapters[0].grad_b}

    return lora, forward, problem, tensors


def test_tokens_of_several_trials_whose_rows_are_unknown_are_refused() -> None:
    lora, forward, _, _ = routed([Trial(2, 3), Trial(1, 2)])
    assert lora.rows_separate is True
    with pytest.raises(RowsUnknownError, match=r"given \[5, 6\] in a pass of 3 rows"):
        forward()
    assert lora.rows_separate is False


@every_form
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_trial_alone_needs_no_rows_but_the_layer_is_remembered(form: Form, dropout: float) -> None:
    """Its tokens are taken for one long row, under that row's dropout."""
    lora, forward, problem, tensors = routed([Trial(2, 3, dropout=dropout)], form)
    found = forward()
    mine = {name: some_tokens(tensors[name])[None] for name in ("x", "base", "g")}
    alone = replace(problem, trials=(replace(problem.trials[0], rows=1),), tokens=5)
    assert_equal(found, alone, mine | {name: tensors[name] for name in ("a0", "b0")})
    assert lora.rows_separate is False


@every_form
def test_a_pass_that_no_adapter_takes_part_in_is_the_base_itself(form: Form) -> None:
    problem = Problem((Trial(1, None), Trial(2, None)))
    tensors = problem.tensors()
    found = run(problem, tensors, form)
    assert torch.equal(found["output"], tensors["base"])
    assert torch.equal(found["base"], tensors["g"])


def test_a_pass_is_over_when_it_fails() -> None:
    lora, forward, _, _ = routed([Trial(2, 3), Trial(1, 2)])
    with pytest.raises(RowsUnknownError):
        forward()
    assert lora._running is None
