"""Figures: one a file, `plot(rows) -> Figure`."""
