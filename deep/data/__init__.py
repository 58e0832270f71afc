"""Data sets: a reader for each kind of file, and `deep.data.load` for all of them by name."""
