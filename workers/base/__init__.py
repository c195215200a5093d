"""The frozen base: its files, loading and quantizing it, its attention, the loss in chunks."""
