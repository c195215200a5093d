"""Adapters on one base, and the LoRA products of a pass over rows of several trials."""
