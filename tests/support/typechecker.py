"""The runtime check of annotations. tests/conftest.py applies it to the modules of pure functions."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float
