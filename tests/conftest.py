"""Shared test set-up: shape annotations are checked in every call; drawn inputs are the same ones.

`pytest --hypothesis-profile=default` draws others.
"""

import os

# Two processes of two threads on two cores wait for each other; results must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from hypothesis import settings
from jaxtyping import install_import_hook

# A change is to be judged by what it does, and not by the day's draw.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

install_import_hook(["theory", "toy", "deep"], "typecheck.checked")
