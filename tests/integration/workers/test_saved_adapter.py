"""The best adapter of a trial of a pack, loaded by plain PEFT elsewhere, gives the recorded numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.trials import of_type, trial_order
from workers.contract import Event, Report, TrialOutcome
from workers.pack.pack import Pack

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PLAIN_PEFT = """
import json, sys
import bitsandbytes
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

base, adapter, data, quantization = sys.argv[1:]
torch.set_num_threads(1)
config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
) if quantization == "nf4" else None
model = AutoModelForCausalLM.from_pretrained(
    base, quantization_config=config, dtype=torch.float32, device_map="cpu"
)
model = PeftModel.from_pretrained(model, adapter)
for module in model.modules():  # bitsandbytes repacks its weights in evaluation mode on some CPUs
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.train()
tokenizer = AutoTokenizer.from_pretrained(base)
loss, tokens = 0.0, 0
for line in open(data):
    row = json.loads(line)
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    completion = completion + [tokenizer.eos_token_id]
    ids = torch.tensor([prompt + completion])
    labels = torch.tensor([[-100] * len(prompt) + completion])
    with torch.no_grad():
        mean = model(input_ids=ids, labels=labels).loss.item()
    loss, tokens = loss + mean * len(completion), tokens + len(completion)
print(json.dumps({"eval_loss": loss / tokens, "base": model.peft_config["default"].base_model_name_or_path}))
"""


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_best_adapter_reproduces_its_eval_loss_in_a_fresh_process(
    tmp_path: Path, tiny_base_dir: Path, quantization: str
) -> None:
    torch.set_num_threads(1)
    events: list[Event] = []
    pack = Pack(events.append, device=torch.device("cpu"), slots=2)
    # A rate that overshoots at the end, so that best and last are different adapters.
    recipe = Recipe(
        learning_rate=5e-2, batch_size=4, epochs=3, lora_r=8, lora_dropout=0.1, lr_scheduler="constant"
    )
    mate = Recipe(learning_rate=1e-3, batch_size=2, epochs=1, lora_r=2, target_modules="attention")
    for attempt_id, own in ((1, recipe), (2, mate)):
        order = trial_order(
            tmp_path,
            tiny_base_dir,
            attempt_id=attempt_id,
            recipe=own,
            quantization=quantization,
            every_examples=8,
            divergence_factor=50,
        )
        pack.admit(order)
    while pack.running_attempts:
        pack.step()
    (outcome,) = (o for o in of_type(events, TrialOutcome) if o.attempt_id == 1)
    first = next(r for r in of_type(events, Report) if r.attempt_id == 1).metrics["eval_loss"]
    assert outcome.value < first
    arguments = [str(tiny_base_dir), outcome.best_adapter_dir, str(order.data.eval), quantization]
    run = subprocess.run([sys.executable, "-c", PLAIN_PEFT, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["eval_loss"] == pytest.approx(outcome.value, abs=1e-5)
    assert found["base"] == str(tiny_base_dir)
