"""The run-time type checker that `conftest.py` puts on every annotated function."""

from beartype import BeartypeConf, beartype

# As for a static checker, an int may stand where a float is expected.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
