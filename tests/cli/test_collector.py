"""The collector is paused in a process of the command line's own, and nowhere else."""

from __future__ import annotations

import gc
import weakref

import pytest

from streamconv.cli import collector


class Knot:
    """An object in a cycle."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def _our_process():
    before = gc.get_threshold()
    collector.let_be()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_process_of_others_is_left_alone() -> None:
    with collector.paused():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("_our_process")
def test_what_is_made_meanwhile_is_not_looked_at_again() -> None:
    with collector.paused():
        assert not gc.isenabled()
        kept = weakref.ref(Knot())
    assert gc.isenabled()
    gc.collect()
    assert kept() is not None
    lost = weakref.ref(Knot())
    gc.collect()
    assert lost() is None


@pytest.mark.usefixtures("_our_process")
def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(KeyError), collector.paused():
        raise KeyError
    assert gc.isenabled()
