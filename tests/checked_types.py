"""What jaxtyping compares arguments with annotations by, in all tests: an option in pyproject.toml says so."""

from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for, as PEP 484 says.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
