"""What jaxtyping compares arguments with annotations by, in the tests.

Switch it on with `pytest --jaxtyping-packages=models,training,train,checked_types.checked`.
"""

from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for, as PEP 484 says.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
