"""Where a base model's files are, and whether they are safe and whole enough to load.

A hub model is fetched into the hub's cache first, so local and hub models pass the same checks and
nothing but configuration, tokenizer and safetensors files is ever downloaded. Pickled weights
(`pytorch_model.bin`) and Python files are never read: both can run code on the worker.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from search_spaces.definition import ModelSpec
from search_spaces.tasks import Task
from search_spaces.values.artifact_layout import ADAPTER_CONFIG
from search_spaces.values.hub_ids import is_hub_id, is_revision
from search_spaces.wording import shortened
from workers.errors import ModelError, faults_of_libraries, without_values
from workers.local_files import Roots, unexchanged

_WEIGHTS = "*.safetensors"
_DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*", "training_args*", "trainer_state*"]
"""Sub-folders hold other formats (onnx, original weights); `consolidated` repeats the same weights."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_LARGEST_CONFIG = 16 * 2**20
"""Bytes of a config.json."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_model_folder(spec: ModelSpec, *, weights: bool = True) -> Path:
    """The local folder with the model's files, fetched from the hub when the id is a hub id.

    Args:
        spec: Which model.
        weights: Whether a hub model's weights are wanted too, which are most of what there is to fetch.

    Raises:
        ModelError: the folder is missing, or the hub does not know the id or cannot be reached.
    """
    folder = Path(spec.id).expanduser()
    # A folder that happens to be called `organisation/name` where this process runs is not the hub's model,
    # and nobody has checked that it lies in the data roots.
    if is_local(spec):
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ModelError(
                f"The model folder {spec.id} {what} on this worker ({socket.gethostname()}). Give model.id a "
                "folder that every worker can read, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
            )
        return folder.resolve()
    return _fetch(spec, [*_DESCRIPTION, _WEIGHTS] if weights else _DESCRIPTION)


def is_local(spec: ModelSpec) -> bool:
    """Whether the model is a folder rather than the hub's."""
    return spec.id.startswith((".", "~")) or Path(spec.id).is_absolute()


def _fetch(spec: ModelSpec, wanted: list[str]) -> Path:
    if not is_hub_id(spec.id):
        raise ModelError(
            f"{spec.id!r} is neither a folder on this worker ({socket.gethostname()}) nor a hub id of the "
            "form `organisation/name`."
        )
    if spec.revision is not None and not is_revision(spec.revision):
        raise ModelError(
            f"{spec.revision!r} is not a revision of the hub model {spec.id}. Give a branch, tag or commit."
        )
    try:
        return Path(
            snapshot_download(
                spec.id, revision=spec.revision, allow_patterns=wanted, ignore_patterns=_UNWANTED
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"The hub model {spec.id} is gated. Accept its terms on the hub and give the worker a "
            "token in HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"The hub model {spec.id} has no revision {spec.revision!r}. Give a branch, tag or commit it has."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"The hub has no model {spec.id}, or this worker may not see it. Check the spelling; for a "
            "private model give the worker a token in HF_TOKEN; for a local model give its folder."
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise ModelError(
            f"The hub model {spec.id} is not in this worker's cache and could not be fetched "
            f"({type(error).__name__}: {_first_line(error)}). Let the worker reach the hub, fill its "
            f"cache beforehand with `hf download {spec.id}`, or give model.id a local folder."
        ) from error


def confined_model(spec: ModelSpec, roots: Roots) -> AbstractContextManager[None]:
    """Refuses a local model that leads out of the data roots or is exchanged meanwhile (`unexchanged`).

    The hub's client has its own folder for what it fetches.
    """
    return unexchanged(Path(spec.id).expanduser(), spec.id, roots) if is_local(spec) else nullcontext()


_DECODER = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "a causal language model",
    "a decoder model such as Llama, Qwen or Mistral",
)
_SEQUENCE = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "a model that transformers can put a head for whole texts on",
    "an encoder such as BERT, RoBERTa or ModernBERT, or a decoder such as Llama, Qwen or Mistral",
)
_ARCHITECTURES: Mapping[Task, tuple[Mapping[str, Any], str, str]] = {
    "causal_lm": _DECODER,
    "preference": _DECODER,
    "sequence_classification": _SEQUENCE,
    "regression": _SEQUENCE,
    "ranking": _SEQUENCE,
    "seq2seq_lm": (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "a sequence-to-sequence model",
        "an encoder-decoder model such as T5, mT5 or BART",
    ),
    "token_classification": (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can put a head for tokens on",
        "an encoder such as BERT, RoBERTa or ModernBERT, or a decoder such as Llama, Qwen or Mistral",
    ),
}
"""Model types that each task can be trained on, and what to say of others."""


def check_model_folder(
    folder: Path, name: str, *, weights: bool = True, task: Task = "causal_lm"
) -> dict[str, Any]:
    """Checks everything that can be checked without building the model; answers its config.json.

    Args:
        folder: holds the model's files.
        name: the model as the definition calls it, for messages.
        weights: whether the weights must be there.
        task: what it is to be trained for.

    Raises:
        ModelError: a file is missing or corrupt, the weights are pickles only, the architecture is
            unknown or needs the checkpoint's own code, the checkpoint is quantized already, or it would
            make transformers read more than the folder's own safetensors files.
    """
    with faults_of_libraries(lambda: f"The files of the model {name} cannot be read", ModelError):
        config = _read_config(folder, name)
        _check_architecture(config, name, task)
        _check_references(config, folder, name)
        if weights:
            _check_weights(folder, name)
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"The model {name} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is in {folder}. Save "
            "it there with `tokenizer.save_pretrained(folder)`."
        )
    return config


_INDEX = "model.safetensors.index.json"


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (
            " It holds a PEFT adapter; model.id must name the base model."
            if (folder / ADAPTER_CONFIG).is_file()
            else ""
        )
        raise ModelError(
            f"The model {name} has no config.json in {folder}.{adapter} A base model is a folder with "
            "config.json, *.safetensors and tokenizer files, as `save_pretrained` writes them."
        )
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ModelError(f"{path} has more than {_LARGEST_CONFIG:,} bytes, so it is not a configuration.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = without_values(str(error))
        raise ModelError(
            f"{path} is not valid JSON ({what}). Restore the file, or download the model again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{path} has no `model_type`, so it is not the configuration of a transformers model."
        )
    return config


def _check_architecture(config: dict[str, Any], name: str, task: Task) -> None:
    model_type = config["model_type"]
    kind = shortened(model_type, 60)
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ModelError(
                f"The model {name} ({kind}) needs Python code from its own checkpoint, and Nightsweep "
                "never runs remote code. Choose a model whose architecture is part of transformers."
            )
        raise ModelError(
            f"The installed transformers does not know the architecture {kind!r} of the model {name}. "
            "Update transformers on the workers or choose another model."
        )
    if not _fits(config, task):
        _, wanted, advice = _ARCHITECTURES[task]
        others = [other for other in _ARCHITECTURES if _fits(config, other)]
        can = f" It can be trained for {', '.join(others)}." if others else ""
        raise ModelError(
            f"The model {name} ({kind}) is not {wanted}, and the task is {task}.{can} Choose {advice}."
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        method = shortened(str(method), 40)
        raise ModelError(
            f"The model {name} is already quantized ({method}). Use the original model: Nightsweep "
            "quantizes it on loading as model.quantization says."
        )


def _fits(config: dict[str, Any], task: Task) -> bool:
    """Whether the architecture has a class for the task, and for language models sees no token to come.

    transformers loads BERT as a causal language model, too: with attention to both sides, which shows it what
    it is to predict. And the decoder of BART as one, from a checkpoint that has no such decoder.
    """
    kind = config["model_type"]
    if kind not in _ARCHITECTURES[task][0]:
        return False
    sees_all = (
        kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )
    return _ARCHITECTURES[task] is not _DECODER or not sees_all or config.get("is_decoder") is True


def _check_references(config: dict[str, Any], folder: Path, name: str) -> None:
    """Refuses what makes transformers load an adapter, other weights, or compiled code from the hub."""
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"The folder of the model {name} holds an adapter beside the base model ({ADAPTER_CONFIG}), "
            "and transformers would load both. Merge it into the model, or remove it."
        )
    if "transformers_weights" in config:
        raise ModelError(
            f"The config.json of the model {name} names a weights file of its own (transformers_weights). "
            "Save the model again with `model.save_pretrained(folder)`."
        )
    if kernel := _named_kernel(config):
        kernel = shortened(kernel)
        raise ModelError(
            f"The config.json of the model {name} names code from the hub ({kernel!r}), and Nightsweep never "
            "runs remote code. Remove that key."
        )


def _named_kernel(config: object) -> str | None:
    """The first hub repository that a key such as `attn_implementation` names, at any depth."""
    for key, value in config.items() if isinstance(config, dict) else ():
        named = list(value.values()) if isinstance(value, dict) else [value]
        if key.endswith("_implementation"):
            for text in named:
                if isinstance(text, str) and ("/" in text or ":" in text):
                    return text
        if found := _named_kernel(value):
            return found
    return None


def _check_weights(folder: Path, name: str) -> None:
    shards = weight_files(folder)
    if not shards:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"The model {name} has its weights as pickles only ({pickles[0]}), which can run code when "
                "loaded. Convert it once, where you trust it, with `model.save_pretrained(folder)`, which "
                "writes safetensors."
            )
        raise ModelError(
            f"The model {name} has no weights: there is no model.safetensors in {folder}. Save it there with "
            "`model.save_pretrained(folder)`, or download the model again."
        )
    for shard in shards:
        if not shard.is_file():
            raise ModelError(
                f"The model {name} lacks {shard.name}, which {_INDEX} names. Download the model again."
            )
        try:
            with safe_open(shard, framework="pt"):
                pass  # opening checks the header and that the file is as long as the header says
        except (SafetensorError, OSError) as error:
            with shard.open("rb") as file:
                pointer = file.read(64).startswith(b"version https://git-lfs")
            hint = "It is a Git LFS pointer: run `git lfs pull`." if pointer else "Download or save it again."
            raise ModelError(
                f"The weights {shard} are corrupt or cut short ({_first_line(error)}). {hint}"
            ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, which need not be there.

    Raises:
        ModelError: Its index is none.
    """
    index = folder / _INDEX
    if index.is_file():
        return [folder / shard for shard in _shards(index)]
    return sorted(folder.glob("model*.safetensors"))


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not a safetensors index. Download the model again.") from error
    foreign = sorted(
        n for n in names if not (isinstance(n, str) and n.endswith(".safetensors") and Path(n).name == n)
    )
    if foreign:
        raise ModelError(
            f"{index} names {shortened(str(foreign[0]))!r}, which is not a safetensors file beside it."
        )
    return sorted(names)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
