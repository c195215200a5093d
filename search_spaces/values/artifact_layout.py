"""Names in an attempt's folder, `<study id>/<trial>/<attempt>/best|last|checkpoint`, and in an adapter's."""

from __future__ import annotations

ADAPTERS = ("best", "last")
"""Folders of adapters."""
CHECKPOINT = "checkpoint"
"""The folder of a trial's checkpoint."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's name for the weights of an adapter."""
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's name for the configuration of an adapter."""
MODEL_CONFIG = "config.json"
"""transformers' name for the configuration of a model: beside an adapter with a head, it holds the labels."""
ADAPTER_FILES = (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
"""All that `PeftModel.from_pretrained` reads, in the order of writing: with the last file the adapter is
complete."""
HEAD_FILES = (MODEL_CONFIG,)
"""What an adapter with a head has beside them, written before the last of them. Older adapters have none."""
