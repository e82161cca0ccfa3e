"""streamconv.ranks.by_metadata, and from_iteration: metadata.json against the files that it names."""

import json
import shutil

import pytest

import streamconv
from streamconv.errors import SourceError
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.trainings import Cut, Stage, Tensor, Training, write_file, write_iteration, write_ranks, write_strategies

FILE = "model-{:07}-0000004.safetensors"


def tensor(name, shape, dtype="BF16"):
    return Tensor.of(TensorSpec(name, dtypes.from_safetensors(dtype, name), shape))


@pytest.fixture
def training():
    """Two copies of two slices: ranks 0 and 2 hold the first, 1 and 3 the second; all hold `norm`."""
    tensors = {"wq": tensor("wq", (8, 6)), "wo": tensor("wo", (8, 6)), "norm": tensor("norm", (6,))}
    cuts = {"wq": Cut((2, 2), ((0,), ())), "wo": Cut((2, 2), ((), (0,))), "norm": Cut((2, 2), ((),))}
    return Training(tensors, [Stage(cuts)], (2, 2))


@pytest.fixture
def place(training, tmp_path):
    return write_iteration(tmp_path, training, training.all_held())


def rewrite(place, rank, training, **tensors):
    """Write a rank's file again, with other tensors, or without those that are `None`."""
    held = {name: one for name, one in (training.held(rank) | tensors).items() if one is not None}
    write_file(place / FILE.format(rank), held)


def check(source, training):
    found = streamconv.open(source)
    assert {name: one.numpy().tobytes() for name, one in found.items()} == {
        name: one.bits.tobytes() for name, one in training.tensors.items()
    }
    return found.to_json()["notes"]


def refused(source, *said):
    with pytest.raises(SourceError) as caught:
        streamconv.open(source)
    assert all(words in str(caught.value) for words in said), str(caught.value)


def test_opened_from_anywhere(place, training, tmp_path):
    why = "iteration 10, the one that latest_checkpointed_iteration.txt names"
    for path in (tmp_path, tmp_path / "checkpoint"):
        assert check(path, training) == ["4 files of ranks, cut as metadata.json says", why]
    assert check(place, training)[1] == "iteration 10"
    shutil.copytree(place, tmp_path / "copied")
    assert len(check(tmp_path / "copied", training)) == 1


@pytest.mark.parametrize("gone", [(0,), (1, 2), (3,)])
def test_files_may_be_missing_if_others_hold_the_same(place, training, gone):
    for rank in gone:
        (place / FILE.format(rank)).unlink()
    missing = ", ".join(FILE.format(rank) for rank in gone)
    assert f"missing: {missing}; other files hold copies of all their slices" in check(place, training)


def test_lost_slices_are_named_with_their_files(place, tmp_path):
    for rank in (1, 3):
        (place / FILE.format(rank)).unlink()
    refused(
        tmp_path,
        f"{FILE.format(1)}, {FILE.format(3)} are missing; no file here has these slices of 2 tensors:",
        f"\n  wq ({FILE.format(1)})\n  wo ({FILE.format(1)})",
    )


def test_a_single_file_that_is_missing(training, tmp_path):
    place = write_iteration(tmp_path, training, training.without_copies(min), counts_files=True)
    (place / "model-0000001-0000002.safetensors").unlink()
    refused(tmp_path, "model-0000001-0000002.safetensors is missing; no file here has")


def test_a_file_without_the_slice_that_it_should_have(place, training):
    rewrite(place, 1, training, wq=None)
    refused(place, f"wq: slice 1 is said to be in {FILE.format(1)}, the file of rank 1, and is not there")


def test_a_slice_of_another_shape_or_dtype(place, training):
    rewrite(place, 1, training, wq=tensor("wq", (3, 6)))
    refused(place, f"wq is [3, 6] BF16 in {FILE.format(1)}, the file of rank 1, and [4, 6] BF16 by metadata.json")
    rewrite(place, 1, training, wq=tensor("wq", (4, 6), "F32"))
    refused(place, f"wq is [4, 6] F32 in {FILE.format(1)}", "and [4, 6] BF16 by metadata.json")


def test_a_file_that_is_said_to_have_another_ranks_slice(place):
    stated = json.loads((place / "metadata.json").read_text())
    one, other = "('wq', (0,))", "('wq', (1,))"
    storage = stated["storage_data"]
    storage[one], storage[other] = storage[other], storage[one]
    (place / "metadata.json").write_text(json.dumps(stated))
    refused(place, "wq, slice 0 is stored by rank 1, and by its layout that rank has slice 1")


def test_a_tensor_that_metadata_does_not_list(place, training):
    extra = tensor("extra", (5,))
    rewrite(place, 1, training, extra=extra)
    training.tensors = {**training.tensors, "extra": extra}
    assert check(place, training)[-1] == "not in metadata.json, so taken to be whole in every file: extra"
    rewrite(place, 2, training, extra=Tensor("BF16", extra.bits + 1))
    refused(place, "extra begins with other bytes in the file of rank 2 than in that of rank 1")
    rewrite(place, 2, training, extra=tensor("extra", (7,)))
    refused(place, "extra is in the file of rank 2, [7] BF16, and metadata.json does not say so")


def test_metadata_that_is_missing_or_cut_short(place, training, tmp_path):
    text = (place / "metadata.json").read_text()
    (place / "metadata.json").write_text(text[: len(text) // 2])
    refused(tmp_path, "metadata.json is not valid JSON", "hint: copy or download the file again")
    (place / "metadata.json").unlink()
    refused(tmp_path, "holds 4 files of a distributed checkpoint and no metadata.json", "was not saved to the end")


def test_a_truncated_file(place, tmp_path):
    path = place / FILE.format(1)
    path.write_bytes(path.read_bytes()[:-5])
    refused(tmp_path, f"{path.name} is truncated")


@pytest.mark.parametrize("has_optimizer", [False, True])
def test_one_card_has_no_metadata(tmp_path, has_optimizer):
    tensors = {"w": tensor("w", (8, 6))}
    states = {"adam_m.w": tensor("adam_m.w", (8, 6), "F32")} if has_optimizer else {}
    cuts = {name: Cut((), ((), ())) for name in (*tensors, *states)}
    one = Training({**tensors, **states}, [Stage(cuts)], ())
    place = write_iteration(tmp_path, one, one.all_held(), is_optimizer=lambda name: name in states)
    (place / "metadata.json").unlink()
    one.tensors = tensors
    check(tmp_path, one)
    check(place, one)


def test_one_file_of_several_without_metadata(place, tmp_path):
    (place / "metadata.json").unlink()
    for rank in (1, 2, 3):
        (place / FILE.format(rank)).unlink()
    with pytest.raises(streamconv.UnsupportedError, match="one of the 4 files of a distributed checkpoint"):
        streamconv.open(tmp_path)


def test_the_optimizer_may_be_missing(tmp_path, training):
    state = tensor("adam_m.wq", (8, 6), "F32")
    training.stages[0].cuts["adam_m.wq"] = training.stages[0].cuts["wq"]
    whole, training.tensors = training.tensors, {**training.tensors, "adam_m.wq": state}
    place = write_iteration(tmp_path, training, training.all_held(), is_optimizer=lambda name: name == "adam_m.wq")
    training.tensors = whole
    assert check(tmp_path, training)[0].endswith("; 1 tensor of the optimizer not read")
    for path in place.glob("opt-*"):
        path.unlink()
    check(tmp_path, training)


def test_folders_of_ranks_next_to_it_are_read_first(place, training, tmp_path):
    write_ranks(tmp_path, training.all_held())
    write_strategies(tmp_path, training)
    assert "not read: iteration_00000010, of the same training" in check(tmp_path, training)
