"""streamconv.ranks.assembly, and from_folders: which slices are put together, and what is refused."""

import numpy as np
import pytest

import streamconv
from streamconv.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.trainings import Cut, Stage, Tensor, Training, write_file, write_ranks, write_strategies

COLUMN, ROW, WHOLE = ((0,), ()), ((), (0,)), ((), ())
ST = "tiny_rank_{rank}-1_10.safetensors"


def tensor(name, shape, dtype="BF16"):
    return Tensor.of(TensorSpec(name, dtypes.from_safetensors(dtype, name), shape))


@pytest.fixture
def parallel():
    """Two copies of two slices: ranks 0 and 2 hold the first, 1 and 3 the second; all hold `norm`."""
    tensors = {"wq": tensor("wq", (8, 6)), "wo": tensor("wo", (8, 6)), "norm": tensor("norm", (6,))}
    cuts = {"wq": Cut((2, 2), COLUMN), "wo": Cut((2, 2), ROW), "norm": Cut((2, 2), ((),))}
    return Training(tensors, [Stage(cuts)], (2, 2))


@pytest.fixture
def staged():
    """Two pipeline stages of two ranks each; both have the embedding."""
    tensors = {name: tensor(name, (8, 6)) for name in ("emb", "a", "b", "head")}
    cut = Cut((2,), COLUMN)
    return Training(tensors, [Stage({"emb": cut, "a": cut}), Stage({"b": cut, "head": cut, "emb": cut})], (2,))


@pytest.fixture
def saved(tmp_path):
    def run(training, held=None, strategy=True, name="tiny_rank_{rank}-1_10.ckpt"):
        write_ranks(tmp_path, training.all_held() if held is None else held, name)
        if strategy:
            write_strategies(tmp_path, training)
        return tmp_path

    return run


def without(training, *ranks):
    return {rank: tensors for rank, tensors in training.all_held().items() if rank not in ranks}


def check(source, training, **arguments):
    with streamconv.open(source, **arguments) as found:
        assert {name: one.numpy().tobytes() for name, one in found.items()} == {
            name: one.bits.tobytes() for name, one in training.tensors.items()
        }
        return found.to_json()["notes"]


def refused(source, *said, error=SourceError, **arguments):
    with pytest.raises(error) as caught:
        streamconv.open(source, **arguments)
    assert all(words in str(caught.value) for words in said), str(caught.value)


def test_any_copy_of_a_slice_will_do(saved, parallel):
    assert "rank 0 missing; other ranks hold copies of all their slices" in check(
        saved(parallel, without(parallel, 0)), parallel
    )


def test_lost_slices_are_named_with_their_ranks(saved, parallel):
    refused(
        saved(parallel, without(parallel, 0, 2)),
        "the strategy is for 4 ranks, and 2 are here; ranks 0, 2 are missing; no rank here has these slices",
        "\n  wq (ranks 0, 2)\n  wo (ranks 0, 2)\nhint: copy the missing files from the hosts that wrote them",
    )


def test_a_step_of_one_rank(saved, parallel):
    source = saved(parallel)
    write_ranks(source, {3: parallel.held(3)}, "tiny_rank_{rank}-1_20.ckpt")
    assert 'other steps of the training: 1_20; choose with step="EPOCH_STEP"' in check(source, parallel)
    refused(source, "1 is here at step 1_20; ranks 0, 1, 2 are missing", "choose another step", step=20)


def test_slices_without_a_strategy(saved, parallel, tmp_path):
    source = saved(parallel, strategy=False)
    refused(
        source,
        "wq begins with other bytes in rank 1 than in rank 0, and so does 1 more tensor: the ranks hold slices, "
        'and no strategy tells how they are cut\nhint: give the training\'s strategy files with strategy="PATH"',
        error=UnsupportedError,
    )
    strategy = write_strategies(tmp_path / "elsewhere", parallel)
    check(source, parallel, strategy=strategy)
    check(source, parallel, strategy=strategy / "ckpt_strategy_rank_2.ckpt")


def test_a_strategy_for_fewer_ranks(saved, parallel):
    half = Training(
        parallel.tensors, [Stage({name: Cut((2,), c.axes) for name, c in parallel.stages[0].cuts.items()})], (2,)
    )
    source = saved(parallel, strategy=False)
    write_strategies(source, half)
    refused(source, "the strategy is for 2 ranks in 1 pipeline stage (", "also holds files of ranks 2, 3")


def test_a_stage_without_a_strategy(saved, staged):
    source = saved(staged)
    for rank in (2, 3):
        (source / f"strategy/ckpt_strategy_rank_{rank}.ckpt").unlink()
    refused(source, "also holds files of ranks 2, 3", "give the strategy files of all pipeline stages")
    write_strategies(source, staged)
    for rank in (0, 1):
        (source / f"strategy/ckpt_strategy_rank_{rank}.ckpt").unlink()
    refused(source, "the strategy of pipeline stage 0 is missing")


def test_a_stage_without_ranks(saved, staged):
    refused(saved(staged, without(staged, 2, 3)), "\n  b (ranks 2, 3)\n  head (ranks 2, 3)")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dtypes_that_differ(saved, parallel, rank):
    held = parallel.all_held()
    held[rank]["wq"] = Tensor("F16", held[rank]["wq"].bits)
    refused(saved(parallel, held), f"wq is [4, 6] F16 in rank {rank} and [4, 6] BF16 in rank 0")


def test_slices_of_another_size_than_their_neighbours(saved, parallel):
    held = parallel.all_held()
    held[3]["wo"] = tensor("wo", (8, 4))
    refused(saved(parallel, held), "1 tensor in slices that do not fit", "wo is [8, 4] BF16 in rank 3 and [8, 3]")


def test_slices_of_other_dimensions_than_the_strategy(saved, parallel):
    held = {rank: {**one, "wq": tensor("wq", (2, 2, 3))} for rank, one in parallel.all_held().items()}
    refused(saved(parallel, held), "wq is [2, 2, 3] in rank 0, and the strategy cuts a tensor of 2 dimensions")


def test_a_shared_embedding(saved, staged):
    """MindSpore saves it in both stages, or only in the first; strategies of both may list it."""
    check(saved(staged), staged)


@pytest.mark.parametrize("gone", [(2, 3), (3,), (2,), (0, 1), (0,)])
def test_a_shared_embedding_that_one_stage_has_completely(saved, staged, gone):
    held = staged.all_held()
    for rank in gone:
        del held[rank]["emb"]
    check(saved(staged, held), staged)


def test_a_shared_embedding_that_no_stage_has_completely(saved, staged):
    held = staged.all_held()
    del held[0]["emb"], held[3]["emb"]
    refused(saved(staged, held), "\n  emb (rank 3)")


def test_a_shared_embedding_that_differs(saved, staged, tmp_path):
    held = staged.all_held()
    held[3]["emb"] = Tensor("BF16", held[3]["emb"].bits + 1)
    source = saved(staged, held)
    with pytest.raises(
        SourceError, match=r"emb is in two pipeline stages, in .*rank_0-1_10.ckpt and .*, and the two diff"
    ):
        streamconv.convert(source, tmp_path.parent / "out", model="raw")


def test_a_shared_embedding_of_other_dtypes_or_shapes(saved, staged):
    held = staged.all_held()
    for rank in (2, 3):
        held[rank]["emb"] = Tensor("F16", held[rank]["emb"].bits)
    refused(saved(staged, held), "emb is [8, 6] BF16 and [8, 6] F16 by its pipeline stages")
    for rank in (2, 3):
        held[rank]["emb"] = tensor("emb", (2, 6))
    refused(saved(staged, held), "emb is [8, 6] BF16 and [4, 6] BF16 by its pipeline stages")


def test_a_tensor_that_only_the_strategy_of_another_stage_lists(saved, staged):
    held = staged.all_held()
    held[2]["a"] = held[0]["a"]
    refused(
        saved(staged, held), "a is in rank 2, and the strategy of its pipeline stage, 1, does not tell how it is cut"
    )


def test_what_no_strategy_lists_is_whole_if_ranks_hold_the_same(saved, parallel):
    held = {rank: {**one, "buffer": tensor("buffer", (4,))} for rank, one in parallel.all_held().items()}
    parallel.tensors = {**parallel.tensors, "buffer": tensor("buffer", (4,))}
    assert "not in the strategy, so taken to be whole in every rank: buffer" in check(saved(parallel, held), parallel)
    held[3]["buffer"] = Tensor("BF16", held[3]["buffer"].bits + 1)
    refused(
        saved(parallel, held),
        "buffer begins with other bytes in rank 3 than in rank 0, and the strategy does not tell how it is cut",
    )


def test_the_state_of_the_optimizer_is_no_whole_tensor_if_no_strategy_lists_it(saved, parallel, tmp_path):
    """A training may save the strategy of what is trained alone. The states' first bytes may be equal: zeros."""
    held = parallel.all_held()
    for one in held.values():
        one.update({f"adam_m.{name}": Tensor("F32", np.zeros(one[name].bits.shape, "u4")) for name in ("wq", "norm")})
    notes = streamconv.open(saved(parallel, held)).to_json()["notes"]
    assert "1 tensor of the training's state not read, because no strategy tells how they are cut: adam_m.wq" in notes
    assert {*streamconv.open(tmp_path)} == {"adam_m.norm", "norm", "wo", "wq"}


def test_state_that_differs_from_rank_to_rank_is_not_read(saved, parallel):
    held = parallel.all_held()
    for rank, one in held.items():
        one["_device_local_norm"] = Tensor("F32", np.array([rank], "u4"))
    assert "1 tensor of the training's state not read" in check(saved(parallel, held), parallel)[-1]


def test_states_have_layouts_of_their_own(saved, parallel):
    state = {
        f"adam_m.{name}": tensor(f"adam_m.{name}", one.bits.shape, "F32") for name, one in parallel.tensors.items()
    }
    parallel.tensors = {**parallel.tensors, **state}
    parallel.stages[0].cuts.update(
        {"adam_m.wq": Cut((2, 2), ((1, 0), ())), "adam_m.wo": Cut((2, 2), ROW, -1), "adam_m.norm": Cut((2, 2), ((0,),))}
    )
    check(saved(parallel), parallel)


def test_what_a_strategy_lists_and_no_rank_has(saved, parallel):
    """MindSpore lists accumulated gradients, and parameters that another stage saves."""
    held = parallel.all_held()
    parallel.stages[0].cuts["accu_grads.wq"] = parallel.stages[0].cuts["ghost"] = parallel.stages[0].cuts["wq"]
    check(saved(parallel, held), parallel)


def test_scalars_and_tensors_without_elements(saved):
    tensors = {"w": tensor("w", (8, 6)), "s": tensor("s", (), "F32"), "e": tensor("e", (0, 6), "F32")}
    training = Training(tensors, [Stage({"w": Cut((2,), COLUMN), "s": Cut((2,), ()), "e": Cut((2,), ROW)})], (2,))
    check(saved(training, name=ST), training)


class TestWithoutAStrategy:
    """Data-parallel training: each rank holds all, or each tensor is in one rank."""

    @pytest.fixture
    def whole(self):
        tensors = {name: tensor(name, (8, 6)) for name in ("a", "b", "c")}
        return Training(tensors, [Stage({name: Cut((3,), WHOLE) for name in tensors})], (3,))

    def test_copies(self, saved, whole):
        source = saved(whole, strategy=False)
        assert check(source, whole) == [
            "3 ranks in checkpoint, step 1_10; no strategy: every rank is taken to hold whole tensors"
        ]
        assert not streamconv.open(source).to_json()["warnings"]

    def test_each_tensor_in_one_rank(self, saved, whole):
        source = saved(whole, {rank: {name: whole.tensors[name]} for rank, name in enumerate("abc")}, strategy=False)
        check(source, whole)
        assert streamconv.open(source).to_json()["warnings"] == [
            "ranks hold different tensors, and no strategy tells how many ranks there were: "
            "what ranks after rank 2 held is missing, if there were any"
        ]

    def test_a_rank_is_missing(self, saved, whole):
        source = saved(whole, {0: {"a": whole.tensors["a"]}, 5_000_000: {"b": whole.tensors["b"]}}, strategy=False)
        refused(
            source, "every rank holds other tensors, and ranks 1, 2, 3, 4, 5 are missing: what only they held is lost"
        )

    def test_one_rank_may_be_the_whole_model(self, saved, whole):
        source = saved(whole, {0: whole.tensors}, strategy=False)
        check(source, whole)
        (warning,) = streamconv.open(source).to_json()["warnings"]
        assert "named like the file of one rank" in warning

    def test_one_rank_that_is_not_the_first(self, saved, whole):
        refused(saved(whole, {3: whole.tensors}, strategy=False), "the file of rank 3", error=UnsupportedError)


def test_files_of_two_formats(saved, parallel):
    held = parallel.all_held()
    source = saved(parallel, {rank: held[rank] for rank in (0, 1)})
    write_ranks(source, {rank: held[rank] for rank in (2, 3)}, ST)
    refused(source, "the ranks hold files of several formats", "rank_0-1_10.ckpt (ckpt)", "(safetensors)")


@pytest.mark.parametrize("name", ["tiny_rank_{rank}-1_10.ckpt", ST, "net.ckpt", "net.safetensors"])
def test_a_truncated_file_is_named_with_its_rank(saved, parallel, name):
    source = saved(parallel, name=name)
    path = source / "checkpoint/rank_2" / name.format(rank=2)
    path.write_bytes(path.read_bytes()[:-20])
    refused(source, path.name, "truncated", "rank_2", "hint: copy or download the file again")
    path.write_bytes(b"")
    refused(source, path.name, "empty file" if path.suffix == ".ckpt" else "0 bytes", "rank_2")


def test_links(saved, parallel, tmp_path):
    write_ranks(tmp_path / "real", parallel.all_held())
    (tmp_path / "checkpoint").mkdir()
    for rank in range(3):
        (tmp_path / f"checkpoint/rank_{rank}").symlink_to(tmp_path / f"real/checkpoint/rank_{rank}")
    file = "rank_3/tiny_rank_3-1_10.ckpt"
    (tmp_path / "checkpoint" / file).parent.mkdir()
    (tmp_path / "checkpoint" / file).symlink_to(tmp_path / "real/checkpoint" / file)
    write_strategies(tmp_path, parallel)
    check(tmp_path, parallel)
    (tmp_path / "real/checkpoint" / file).unlink()
    refused(tmp_path, "rank_3-1_10.ckpt: it is a link to a file that does not exist")


def test_an_empty_folder_of_a_rank(saved, parallel):
    source = saved(parallel, without(parallel, 3))
    (source / "checkpoint/rank_3").mkdir()
    assert "rank 3 missing; other ranks hold copies of all their slices" in check(source, parallel)


def test_hostile_names_are_escaped(saved, parallel):
    source = saved(parallel, name="\x1b[31m\n_rank_{rank}-1_10.ckpt")
    check(source, parallel)
    write_file(source / "checkpoint/rank_0/x_rank_0-1_10.ckpt", parallel.held(0))
    with pytest.raises(StreamconvError) as caught:
        streamconv.open(source)
    assert "\x1b" not in str(caught.value)
