"""The runtime check of annotations, which tests/conftest.py puts around the modules of pure functions."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome where a float is
