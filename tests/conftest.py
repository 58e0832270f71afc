"""Shared test set-up: jaxtyping's shape annotations are checked in every call under test."""

import os

# Two processes of two threads on two cores wait for each other; results must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from jaxtyping import install_import_hook

install_import_hook(["theory", "toy", "deep"], "typecheck.checked")
