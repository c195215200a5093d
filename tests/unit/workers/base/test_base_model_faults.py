"""Every model that cannot be used is refused with a sentence that says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_spaces.definition import ModelSpec
from workers.base.base_model import load_base
from workers.errors import ModelError


@pytest.fixture
def folder(tiny_base_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to spoil."""
    return Path(shutil.copytree(tiny_base_dir, tmp_path / "base"))


def refusal(model_id: str | Path, **fields: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(ModelSpec(id=str(model_id), **fields), torch.device("cpu"))
    return str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """The message names the folder and the alternatives."""
    message = refusal(tmp_path / "nowhere")
    assert f"The model folder {tmp_path / 'nowhere'} does not exist on this worker" in message
    assert "or a hub id" in message


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    """A path to the weights themselves is not a model."""
    assert "is a file, not a folder" in refusal(folder / "model.safetensors")


def test_a_folder_without_config(folder: Path) -> None:
    """The message says what a base model's folder holds."""
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


def test_an_adapter_in_place_of_a_base(folder: Path) -> None:
    """A folder that PEFT wrote is named as such."""
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "It holds a PEFT adapter; model.id must name the base model." in refusal(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "has no `model_type`"),
        ('{"hidden_size": 8}', "has no `model_type`"),
    ],
)
def test_a_config_that_is_none(folder: Path, text: str, expected: str) -> None:
    """Broken or foreign JSON is told apart from a missing file."""
    (folder / "config.json").write_text(text)
    assert expected in refusal(folder)


def test_a_config_whose_values_make_no_model(folder: Path) -> None:
    """What transformers says about it is passed on in one sentence."""
    edit_config(folder, hidden_size="wide")
    assert "could not be loaded from" in refusal(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    """No weights at all."""
    (folder / "model.safetensors").unlink()
    assert "has no weights: there is no model.safetensors" in refusal(folder)


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    """A checkpoint with pickles only is refused, and its pickle is not opened."""
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    pickle = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
    (folder / "pytorch_model.bin").write_bytes(pickle)
    message = refusal(folder)
    assert "has its weights as pickles only (pytorch_model.bin), which can run code when loaded" in message
    assert not ran.exists()


def test_an_architecture_that_needs_remote_code(folder: Path, tmp_path: Path) -> None:
    """The checkpoint's own Python is refused, and not imported."""
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    edit_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert "needs Python code from its own checkpoint, and Nightsweep never runs remote code" in refusal(
        folder
    )
    assert not ran.exists()


def test_a_tokenizer_that_needs_remote_code(folder: Path, tmp_path: Path) -> None:
    """The same for a tokenizer's own Python."""
    ran = tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    path.write_text(json.dumps(config))
    assert "The tokenizer of the model" in (message := refusal(folder))
    assert "never runs remote code" in message
    assert not ran.exists()


def test_an_unknown_architecture(folder: Path) -> None:
    """Without code of its own it may be newer than the installed transformers."""
    edit_config(folder, model_type="llama99")
    assert "does not know the architecture 'llama99'" in refusal(folder)


def test_a_model_that_is_no_language_model(folder: Path) -> None:
    """An encoder cannot do causal_lm."""
    edit_config(folder, model_type="vit")
    assert "(vit) is not a causal language model" in refusal(folder)


def test_a_checkpoint_that_is_quantized_already(folder: Path) -> None:
    """Quantizing twice is refused."""
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is already quantized (gptq). Use the original model" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 0.5])
def test_weights_that_are_cut_short(folder: Path, keep: float) -> None:
    """An interrupted copy is found before anything is built from it."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    assert "model.safetensors are corrupt or cut short" in refusal(folder)


def test_a_git_lfs_pointer_in_place_of_weights(folder: Path) -> None:
    """A clone without LFS is a common cause with a simple cure."""
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert "run `git lfs pull`" in refusal(folder)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_weights_that_lack_a_tensor(folder: Path, quantization: Any) -> None:
    """transformers would fill the gap with random numbers; here it is an error."""
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    message = refusal(folder, quantization=quantization)
    assert "lack 1 tensor that its config.json requires, such as model.layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_weights_of_another_shape(folder: Path, quantization: Any) -> None:
    """A quantized tensor of the wrong shape would otherwise load without a word."""
    edit_config(folder, intermediate_size=96)
    message = refusal(folder, quantization=quantization)
    assert "model.layers.0.mlp.down_proj.weight is [64, 128] in the file, expected [64, 96]" in message


def test_an_index_that_names_a_missing_shard(folder: Path) -> None:
    """Half-downloaded models lack one of several files."""
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})
    )
    assert "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names" in refusal(
        folder
    )


def test_an_index_that_points_outside_its_folder(folder: Path) -> None:
    """Shards lie beside their index."""
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}})
    )
    assert "names '../other.safetensors', which is not a safetensors file beside it" in refusal(folder)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    """The message says how to add it."""
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer: none of tokenizer.json" in refusal(folder)


def test_a_tokenizer_that_is_broken(folder: Path) -> None:
    """A tokenizer file that is not one."""
    (folder / "tokenizer.json").write_text("{}")
    assert "The tokenizer of the model" in refusal(folder)


def test_a_hub_model_without_access_to_the_hub() -> None:
    """Offline and not in the cache: the message says how to fill it."""
    message = refusal("some-organisation/some-model")
    assert "The hub model some-organisation/some-model is not in this worker's cache" in message
    assert "hf download some-organisation/some-model" in message


def test_an_id_that_is_neither_folder_nor_hub_id() -> None:
    """Nothing is asked of the hub for an impossible id."""
    assert "is neither a folder on this worker" in refusal("a/b/c")


def test_a_folder_of_the_working_directory_is_not_taken_for_a_hub_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has checked that it lies in the data roots: the service resolves every folder it accepts."""
    (tmp_path / "org").mkdir()
    folder.rename(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "The hub model org/name is not in this worker's cache" in refusal("org/name")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_implementation": "stranger/kernel"}, "names code from the hub ('stranger/kernel')"),
        ({"attn_implementation": {"": "stranger/kernel:run"}}, "names code from the hub"),
        ({"text_config": {"_attn_implementation": "a/b@main"}}, "names code from the hub ('a/b@main')"),
        ({"experts_implementation": "a/b"}, "names code from the hub"),
        ({"transformers_weights": "../other.safetensors"}, "names a weights file of its own"),
    ],
)
def test_a_configuration_that_makes_transformers_read_elsewhere(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    """Attention kernels of the hub are compiled code; other weights are not those that were checked."""
    edit_config(folder, **changes)
    assert words in refusal(folder)


def test_a_configuration_with_a_known_attention_is_fine(folder: Path) -> None:
    """What transformers has itself may be named."""
    edit_config(folder, attn_implementation="eager")
    assert load_base(ModelSpec(id=str(folder), quantization="none"), torch.device("cpu")).model is not None


def test_an_adapter_beside_the_base_is_not_loaded_with_it(folder: Path) -> None:
    """transformers would add it to the base without a word, from a pickle if need be."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    assert "holds an adapter beside the base model" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["https://evil.example/m", "file:///etc", "org/../../etc", "org/m/..", "\u043erg/model", "a//b", "-x/y"],
)
def test_a_hub_id_is_nothing_but_a_hub_id(name: str) -> None:
    """URLs, paths and letters that only look like those of an id never reach the hub's client."""
    assert "is neither a folder on this worker" in refusal(name)


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "/etc/passwd", "a b", "a\n"])
def test_a_revision_that_would_leave_the_hubs_cache(revision: str) -> None:
    """It becomes part of a path there."""
    assert "is not a revision of the hub model" in refusal("org/model", revision=revision)
