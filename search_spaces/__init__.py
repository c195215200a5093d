"""The vocabulary of a search: definitions, spaces, recipes, samplers, pruning rules.

Pure: no I/O, no torch, no SQL.
"""
