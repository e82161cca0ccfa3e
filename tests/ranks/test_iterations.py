"""streamconv.ranks.iterations: which iteration of a training is read."""

import pytest

from streamconv.errors import SourceError, UsageError
from streamconv.ranks import iterations
from streamconv.ranks.iterations import METADATA, TRACKER

MODELS = tuple(f"model-{rank:07}-0000002.safetensors" for rank in range(2))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture
def make(root):
    def run(number, *names, name="iteration_{:08}"):
        place = root / name.format(number)
        place.mkdir(parents=True)
        for file in names or (*MODELS, METADATA):
            (place / file).touch()
        return place

    return run


def read(path, step=None):
    found = iterations.find(path, step)
    return found and (found.number, found.why, list(found.others))


def test_the_one_that_the_tracker_names(make, root, tmp_path):
    places = {number: make(number) for number in (10, 20, 30)}
    (root / TRACKER).write_text("20")
    for path in (root, tmp_path):
        assert read(path) == (20, f"the one that {TRACKER} names", [10, 30])
        assert read(path, "30") == (30, "", [10, 20])
    assert read(places[10]) == read(places[10], "10") == (10, "", [])
    assert iterations.find(root, None).directory == places[20]


@pytest.mark.parametrize("text", ["", "x", "-1", "²", "\0", "9" * 32, "1.0", None])
def test_without_a_number_in_the_tracker_the_newest_complete_one(make, root, text):
    make(10)
    make(20, *MODELS)
    if text is not None:
        (root / TRACKER).write_text(text)
    assert read(root) == (10, "the newest complete one", [20])


def test_none_is_complete(make, root):
    make(10, MODELS[0])
    make(20, *MODELS)
    assert read(root) == (20, "the newest", [10])


def test_what_is_no_iteration(make, root, tmp_path):
    make(10, "model.safetensors")
    make(11, "opt-0000000-0000001.safetensors")
    make(1, name="iteration_1")
    make(1, name="my_iteration_00000001")
    assert read(root) is None
    assert read(tmp_path / "absent") is None
    (tmp_path / METADATA).touch()
    (tmp_path / "model.safetensors").touch()
    assert read(tmp_path) is None


def test_a_directory_of_any_name_with_their_files(make):
    assert read(make(0, name="copied")) == (None, "", [])
    assert read(make(0, "a-" + MODELS[0], METADATA, name="one")) == (None, "", [])
    assert read(make(0, MODELS[0], name="other")) is None


@pytest.mark.parametrize("step", ["11", "x", "²", "-10", "", "1_10"])
def test_a_step_that_is_not_there(make, root, step):
    place = make(10)
    make(20)
    with pytest.raises(UsageError, match=r"holds no iteration .*; there are: 20, 10"):
        read(root, step)
    with pytest.raises(UsageError, match="is iteration 10, not "):
        read(place, step)


def test_the_tracker_names_one_that_is_missing(make, root):
    make(10)
    (root / TRACKER).write_text("30\n")
    with pytest.raises(SourceError, match="names iteration 30, whose weights are missing; there are: 10\nhint: copy"):
        read(root)
    assert read(root, "10") == (10, "", [])


def test_the_tracker_names_one_without_weights_and_there_are_no_others(make, root):
    make(10, "opt-0000000-0000001.safetensors")
    (root / TRACKER).write_text("10")
    with pytest.raises(SourceError, match=r"no iteration has its weights\nhint: copy its files too$"):
        read(root)
