"""Plots of pages, as documents that Plotly's script draws, each with its numbers in a table. Pure."""
