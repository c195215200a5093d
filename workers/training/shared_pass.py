"""Passes that several trials share: planned, run, checked, and made smaller where memory ran out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

from workers.base.base_model import activations_checkpointed, set_training
from workers.data.examples import AnyExample, real_tokens
from workers.device.devices import to_device
from workers.device.generators import derive_seed, seeded
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.device.memory import is_out_of_memory, release
from workers.device.meter import PassMeter
from workers.errors import LossNotFiniteError
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import Form, RowsUnknownError
from workers.lora.neftune import noisy_embeddings
from workers.training.evaluation import CollatedSets, evaluate
from workers.training.generation import Prompt, decoded, generate, generation_lengths
from workers.training.objectives.base import Evaluation
from workers.training.objectives.registry import objective_of
from workers.training.pass_planning import (
    PassPart,
    Waiting,
    plan_pass,
    plan_pass_without_padding,
    tokens_of_pass,
)
from workers.training.trial_run import Advance, PassResult, StepResult, TrialRun, advance

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_OVERHEAD_TOKENS = 64.0
"""Until it has been measured: the quickstart's base on one CPU core."""

_GENERATED_PER_TRAINED = 8
"""Tokens of a batch that writes for each one of a training pass. This keeps about 17 times the hidden size in
a layer (arXiv 2205.05198, 34 bytes at two a number), that keys and values: at most twice the hidden size."""


class DoesNotFitError(Exception):
    """A trial's pass ran out of memory with a single row."""

    def __init__(self, run: TrialRun | None, what: str) -> None:
        super().__init__(what)
        self.run = run
        """None when it has not begun."""
        self.what = what
        """What did not fit, to go on after "out of memory"."""


class SharedPasses:
    """Trains and evaluates the trials of one base together.

    Attributes:
        token_budget: Padded tokens a pass may hold. Running out of memory halves it for good.
        overhead_tokens: Tokens that could be trained in the time a pass takes before its first.
        meter: Has measured the training passes.
    """

    def __init__(
        self,
        host: AdapterHost,
        *,
        token_budget: int,
        form: Form | None = None,
        heartbeat: Heartbeat = UNWATCHED,
    ) -> None:
        """
        Args:
            host: The base, and the adapters of all the trials.
            token_budget: Padded tokens a pass may hold.
            form: How the LoRA products are taken; None: as `AdapterHost.choose_form` says.
            heartbeat: Notified of each pass.
        """
        self.host = host
        self._objective = objective_of(host.base)
        self._heartbeat = heartbeat
        self.token_budget = token_budget
        self.overhead_tokens = _OVERHEAD_TOKENS
        self.meter = PassMeter(host.base.device)
        self._collated = CollatedSets()
        self._form = form
        self._fitting: int | None = None
        self._generated_per_trained = _GENERATED_PER_TRAINED

    def set_token_budget(self, tokens: int) -> None:
        """Changes the size of a pass, within what has been found to fit."""
        self.token_budget = tokens if self._fitting is None else min(tokens, self._fitting)

    def most_rows(self, run: TrialRun) -> int:
        """Rows of a trial's longest examples that one pass may hold."""
        longest = max(example.length for example in run.examples)
        return max(
            1,
            min(
                run.recipe.batch_size, run.micro_batch_size or self.token_budget, self.token_budget // longest
            ),
        )

    def train(self, runs: Sequence[TrialRun]) -> list[Advance]:
        """One pass. No run moves unless its own numbers are finite, whatever the others' are.

        Args:
            runs: Not finished; those that have waited longest first.

        Returns:
            What became of those that took part.

        Raises:
            DoesNotFitError: The pass ran out of memory with one row. Nothing has moved.
        """
        started = time.perf_counter()
        while True:
            parts = self._plan(runs)
            begun = self.meter.begin(tokens_of_pass(parts, padding_free=self.host.base.padding_free))
            try:
                results, padded = self._run(parts)
                break
            except RowsUnknownError:
                if len(parts) == 1:
                    raise
                continue  # the host knows now, and passes are of one trial each
            except LossNotFiniteError as error:
                if len(parts) > 1:
                    raise
                what, run = str(error), parts[0].run
                return [Advance(run, ended=run.diverged(what[0].lower() + what[1:]))]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, outside the handler, has the traceback let go of the pass's tensors.
            self._shrink(parts)
        self._account(parts, padded, time.perf_counter() - started)
        taken = [(part.run, part.indices, result) for part, result in zip(parts, results, strict=True)]
        advances = advance(taken)
        self.meter.end(begun, tokens=padded, trials=len(parts))
        return advances

    def finish_batch(self, run: TrialRun) -> StepResult:
        """Trains one trial alone up to its next optimizer step.

        Raises:
            TrialEndedError: It diverged.
            DoesNotFitError: It does not fit.
            Exception: What broke its step.
        """
        while True:
            (result,) = self.train([run])
            if result.ended is not None:
                raise result.ended
            if result.step is not None:
                return result.step

    def evaluate(
        self, runs: Sequence[TrialRun], examples: Sequence[AnyExample], *, per_row: bool = False
    ) -> list[Evaluation]:
        """Evaluates adapters as they are, together; with `per_row`, what each example comes to, too.

        Raises:
            DoesNotFitError: One example of one trial does not fit.
        """
        with self._evaluating(runs):
            return self._evaluate([run.adapter for run in runs], examples, self._collated, per_row=per_row)

    def generate(
        self, runs: Sequence[TrialRun], prompts: Sequence[Prompt], *, max_new_tokens: int
    ) -> list[list[str]]:
        """Lets adapters as they are write from the same prompts, together.

        Returns:
            Of each, what it wrote from each prompt.

        Raises:
            DoesNotFitError: One prompt of one trial does not fit.
        """
        tokens = [prompt.input_ids for prompt in prompts]
        longest = max(total for total, _new in generation_lengths(self.host.base, tokens, max_new_tokens))
        adapters = [run.adapter for run in runs]
        ends = {prompt.end for prompt in prompts if prompt.end is not None}

        def work(budget: int) -> list[list[torch.Tensor]]:
            return generate(
                self.host,
                adapters,
                tokens,
                max_new_tokens=max_new_tokens,
                token_budget=budget,
                heartbeat=self._heartbeat,
                ends=ends,
            )

        with self._evaluating(runs):
            what = f"generating one text of {longest} tokens"
            written = self.within_memory(work, longest, what, generates=True)
            return [[decoded(self.host.base.tokenizer, text) for text in texts] for texts in written]

    def measure_start(self, adapter: Adapter, examples: Sequence[AnyExample]) -> Evaluation:
        """What a trial that has not begun starts from.

        Raises:
            DoesNotFitError: One example does not fit.
        """
        (totals,) = self._evaluate([adapter], examples)
        return totals

    def _evaluate(
        self,
        adapters: Sequence[Adapter],
        examples: Sequence[AnyExample],
        collated: CollatedSets | None = None,
        *,
        per_row: bool = False,
    ) -> list[Evaluation]:
        longest = max(example.length for example in examples)

        def work(budget: int) -> list[Evaluation]:
            return evaluate(self.host, adapters, examples, budget, self._heartbeat, collated, per_row=per_row)

        return self.within_memory(work, longest, f"evaluating one example of {longest} tokens")

    @contextmanager
    def _evaluating(self, runs: Sequence[TrialRun]) -> Iterator[None]:
        """Inside, time counts as that of these trials' evaluation; what does not fit is the first's."""
        started = time.perf_counter()
        try:
            yield
        except DoesNotFitError as error:
            raise DoesNotFitError(runs[0], error.what) from None
        seconds = (time.perf_counter() - started) / len(runs)
        for run in runs:
            run.eval_seconds += seconds

    def within_memory(
        self, work: Callable[[int], _Result], longest: int, what: str, *, generates: bool = False
    ) -> _Result:
        """Does a piece of work with ever fewer padded tokens at once, until it fits.

        Args:
            work: Is given how many tokens.
            longest: The fewest that it can be done with.
            what: It, to go on after "out of memory".
            generates: Whether it keeps nothing of a token but keys and values.

        Raises:
            DoesNotFitError: It does not with `longest`.
        """
        # With checkpoints training keeps no more of a token than generation does.
        may_grow = generates and not activations_checkpointed(self.host.base.model)
        budget = max(self.token_budget * (self._generated_per_trained if may_grow else 1), longest)
        while True:
            try:
                return work(budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            release(self.host.base.device)
            if budget <= longest:
                raise DoesNotFitError(None, what)
            if may_grow:
                self._generated_per_trained = max(1, self._generated_per_trained // 2)
            budget = max(budget // 2, longest)
            if budget < self.token_budget:
                self._fitting = min(self._fitting or budget, budget)
                self.set_token_budget(self.token_budget)

    def _plan(self, runs: Sequence[TrialRun]) -> list[PassPart]:
        if not self.host.shares_passes:
            runs = runs[:1]
        waiting = [Waiting(run.waiting_lengths, run.recipe.batch_size, run.micro_batch_size) for run in runs]
        plan = plan_pass_without_padding if self.host.base.padding_free else plan_pass
        chosen = plan(waiting, self.token_budget, overhead_tokens=self.overhead_tokens)
        parts = [
            PassPart(run, [run.waiting[position] for position in positions])
            for run, positions in zip(runs, chosen, strict=True)
            if positions
        ]
        return sorted(parts, key=lambda part: part.run.adapter.place)

    def _run(self, parts: Sequence[PassPart]) -> tuple[list[PassResult], int]:
        """Forward and backward: what came of each part, and the positions of the pass, padding included.

        Waits for the device once.
        """
        with self._heartbeat.passing("training"):
            return self._run_once(parts)

    def _run_once(self, parts: Sequence[PassPart]) -> tuple[list[PassResult], int]:
        base = self.host.base
        if not base.model.training:  # walks all modules, so only after an evaluation
            set_training(base.model, True)
        batch = self._objective.collate([example for part in parts for example in part.examples], base)
        counts = torch.tensor([len(part.indices) for part in parts])
        owners = torch.arange(len(parts)).repeat_interleave(counts)[batch.target_examples]
        shares = [part.run.share(part.indices) for part in parts]
        groups = [part.run.rows(part.indices) for part in parts]
        torch._foreach_zero_([part.run.adapter.gradient for part in parts])
        device = base.device
        owners, batch = to_device(owners, device), batch.to(device)
        with (
            self._own_dropout(parts),
            self._noise(parts),
            self.host.multi_lora.running(
                groups,
                tokens=batch.tokens,
                form=self._form or self.host.choose_form(groups),
                device=device,
                row_lengths=batch.row_lengths,
            ),
        ):
            losses = self._objective.losses(base, batch, owners, shares, gradient=True)
            assert losses.objective is not None
            losses.objective.backward()  # type: ignore[no-untyped-call]
        sums = torch.zeros(len(parts), dtype=torch.float64, device=device)
        sums.index_add_(0, owners, losses.losses.double())
        norms = torch.stack([part.run.gather() for part in parts])
        loss_sums, values = torch.stack((sums, norms.double())).tolist()
        return [PassResult(*pair) for pair in zip(loss_sums, values, strict=True)], batch.padded_tokens

    @contextmanager
    def _own_dropout(self, parts: Sequence[PassPart]) -> Iterator[None]:
        """Draws the dropout of a base that has any from the one trial's own seed."""
        if not self.host.base.has_dropout:
            yield
            return
        run, first = parts[0].run, parts[0].indices[0]
        seed = derive_seed(run.recipe.seed, f"the base's dropout from example {first}", run.steps)
        with seeded(seed, self.host.base.device):
            yield

    def _noise(self, parts: Sequence[PassPart]) -> AbstractContextManager[None]:
        """NEFTune's noise on the rows of the trials that have it."""
        if not any(part.run.recipe.neftune_alpha for part in parts):
            return nullcontext()
        base, columns = self.host.base, zip(*(row for part in parts for row in part.noise()), strict=True)
        values = [to_device(torch.tensor(column), base.device) for column in columns]
        return noisy_embeddings(base.model, *values, end_to_end=base.padding_free)

    def _shrink(self, parts: Sequence[PassPart]) -> None:
        """After running out of memory: a smaller budget, or no way on."""
        release(self.host.base.device)
        rows = sum(len(part.indices) for part in parts)
        padded = tokens_of_pass(parts, padding_free=self.host.base.padding_free)
        if rows == 1:
            raise DoesNotFitError(
                parts[0].run, f"training at micro-batch 1, on an example of {padded} tokens"
            )
        self._fitting = padded // 2
        self.token_budget = self._fitting
        _log.warning(
            "out of memory in a pass of %d tokens; going on with at most %d a pass"
            " (every trial's effective batch stays what it is)",
            padded,
            self.token_budget,
        )

    def _account(self, parts: Sequence[PassPart], padded: int, seconds: float) -> None:
        """Each trial bears its examples' share of the pass."""
        examples = sum(len(part.indices) for part in parts)
        for part in parts:
            run, share = part.run, len(part.indices)
            run.train_seconds += seconds * share / examples
            own = sum(map(real_tokens, part.examples))
            run.real_tokens += own
            run.padded_tokens += own if self.host.base.padding_free else padded * share // examples
