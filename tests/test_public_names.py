"""What `from easybus import *` gives, and that each of it says what it is."""

from __future__ import annotations

import importlib

import pytest

import easybus

PUBLIC = {"easybus": 35, "easybus.parts": 35, "easybus.testing": 10}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_exists_and_is_listed_once(module: str) -> None:
    loaded = importlib.import_module(module)
    assert len(loaded.__all__) == len(set(loaded.__all__)) <= PUBLIC[module]
    for name in loaded.__all__:
        assert getattr(loaded, name).__doc__, name


def test_errors_of_the_top_are_those_of_the_tree() -> None:
    from easybus import errors

    public = {name for name in errors.__all__ if name != "Signal"}
    assert public <= set(easybus.__all__)


def test_every_error_of_ours_is_an_easybus_error() -> None:
    from easybus import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, (easybus.EasybusError, errors.Signal))
