"""From data files to tokenized examples and batches."""
