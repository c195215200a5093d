"""Loads an example's adapter with transformers and PEFT alone, and predicts the rows of its `eval.jsonl`.

    python examples/predict.py sequence_classification ADAPTER_FOLDER [--rows 3]

The folder is what `nightsweep adapter` writes. An adapter with a head has a `config.json`, which says how
many labels the head has and what they are called.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

HERE = Path(__file__).resolve().parent
MODELS = {
    "causal_lm": AutoModelForCausalLM,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "regression": AutoModelForSequenceClassification,
    "ranking": AutoModelForSequenceClassification,
    "preference": AutoModelForCausalLM,
}
NEW_TOKENS = 32

Row = dict[str, Any]


def eval_rows(task: str) -> list[Row]:
    lines = (HERE / task / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def quantization(kind: str, heads: list[str] | None) -> BitsAndBytesConfig | None:
    """The base's, as it was in training: its heads, which the adapter replaces, are in full precision."""
    if kind == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        llm_int8_skip_modules=heads,  # of 4 bits, too
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


class Predictor:
    """The base of an example's study, with an adapter on it.

    Autograd stays on where nothing is generated: without it, bitsandbytes repacks 4-bit weights for inference
    in bfloat16, and the numbers differ a little from those that were trained.
    """

    def __init__(self, task: str, adapter: Path) -> None:
        spec = yaml.safe_load((HERE / task / "study.yaml").read_text(encoding="utf-8"))["model"]
        base = HERE / task / spec["id"]
        has_head = (adapter / "config.json").is_file()
        heads = PeftConfig.from_pretrained(adapter).modules_to_save
        model = MODELS[task].from_pretrained(
            base,
            config=AutoConfig.from_pretrained(adapter if has_head else base),
            quantization_config=quantization(spec["quantization"], heads),
            device_map="cpu",
            dtype=torch.float32,
        )
        self.task = task
        self.model = PeftModel.from_pretrained(model, adapter).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)

    def predict(self, row: Row) -> Any:
        """A text, a label, a label for each word, a score, or the rewards of both answers."""
        if self.task == "causal_lm":
            return self._generated(row["prompt"], prompt_is_part=True)
        if self.task == "seq2seq_lm":
            return self._generated(row["source"], prompt_is_part=False)
        if self.task == "token_classification":
            return self._labels(row["tokens"])
        if self.task == "preference":
            return tuple(
                self._implied_reward(row["prompt"], row[answer]) for answer in ("chosen", "rejected")
            )
        if self.task == "ranking":
            return tuple(self._reward(row["prompt"], row[answer]) for answer in ("chosen", "rejected"))
        logits = self.model(**self.tokenizer(row["text"], return_tensors="pt")).logits[0].detach()
        if self.task == "regression":
            return float(logits)
        return self.model.config.id2label[int(logits.argmax())]

    def _generated(self, text: str, *, prompt_is_part: bool) -> str:
        inputs = self.tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        tokens = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        new = tokens[inputs["input_ids"].shape[1] :] if prompt_is_part else tokens
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def _labels(self, words: list[str]) -> list[str]:
        """The label of each word's first token."""
        encoding = self.tokenizer(words, is_split_into_words=True, return_tensors="pt")
        numbers = self.model(**encoding).logits[0].argmax(-1).tolist()
        ids = encoding.word_ids()
        return [self.model.config.id2label[numbers[ids.index(word)]] for word in range(len(words))]

    def _ids(self, prompt: str, answer: str) -> tuple[torch.Tensor, int]:
        """The tokens of a prompt, an answer and the end of text, and how many are the prompt's."""
        first, second = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
        )
        return torch.tensor([[*first, *second, self.tokenizer.eos_token_id]]), len(first)

    def _reward(self, prompt: str, answer: str) -> float:
        return float(self.model(input_ids=self._ids(prompt, answer)[0]).logits.detach())

    def _implied_reward(self, prompt: str, answer: str) -> float:
        """DPO's reward over beta: how much likelier the answer has become."""
        tuned = self._log_probability(prompt, answer)
        with self.model.disable_adapter():
            return tuned - self._log_probability(prompt, answer)

    def _log_probability(self, prompt: str, answer: str) -> float:
        ids, start = self._ids(prompt, answer)
        scores = self.model(input_ids=ids).logits[0, :-1].detach().log_softmax(-1)
        return float(scores.gather(1, ids[0, 1:, None])[start - 1 :].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict rows of an example's eval data.")
    parser.add_argument("task", choices=MODELS)
    parser.add_argument("adapter", type=Path, help="a folder with adapter_config.json")
    parser.add_argument("--rows", type=int, default=3)
    arguments = parser.parse_args()
    predictor = Predictor(arguments.task, arguments.adapter)
    for row in eval_rows(arguments.task)[: arguments.rows]:
        print(json.dumps(row))
        print("->", predictor.predict(row))


if __name__ == "__main__":
    main()
