"""streamconv.ranks.rank_folders: which files of which step are a training's, and what are not."""

import pytest

from streamconv.errors import SourceError, UsageError
from streamconv.formats.rank_slices import Saved
from streamconv.ranks import rank_folders
from support.helpers import text_of

CKPT = "tiny_rank_{rank}-1_10.ckpt"


@pytest.fixture
def make(tmp_path):
    def run(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return run


@pytest.fixture
def find(make):
    return lambda *names: rank_folders.find(make(*names))


def chosen(folders, step=None):
    return [str(file.path.relative_to(folders.directory)) for file in rank_folders.choose(folders, step).files]


def named(*endings, ranks=(0, 1), folder="checkpoint/"):
    return [f"{folder}rank_{rank}/tiny_rank_{rank}{ending}" for rank in ranks for ending in endings]


def test_what_a_training_leaves(find, tmp_path):
    found = find(
        *named("-1_10.ckpt"),
        *named("-network.ckpt", folder="checkpoint_network/"),
        *named("-trainable_params.ckpt", folder="checkpoint_trainable/"),
        *("checkpoint/rank_0/meta.json", "checkpoint/rank_0/tiny_rank_0-1_20.ckpt.tmp", "checkpoint/rank_0/.x.ckpt"),
        *("strategy/ckpt_strategy_rank_0.ckpt", "checkpoint/rank_1/ckpt_strategy_rank_1.ckpt", "health_ckpts.json"),
    )
    assert found.directory == tmp_path / "checkpoint"
    assert found.names == {rank: {Saved(1, 10): [f"rank_{rank}/tiny_rank_{rank}-1_10.ckpt"]} for rank in (0, 1)}
    assert found.unread == ("checkpoint_network", "checkpoint_trainable")
    assert found.strategy() == tmp_path / "strategy"
    assert rank_folders.find(tmp_path / "checkpoint").strategy() == tmp_path / "strategy"
    assert rank_folders.find(tmp_path / "checkpoint_trainable").directory == tmp_path / "checkpoint_trainable"


def test_iterations_next_to_them_are_named(find):
    assert find(*named("-1_10.ckpt"), "checkpoint/iteration_00000010/model.safetensors").unread == (
        "iteration_00000010",
    )


def test_side_by_side(find, tmp_path):
    found = find("a_rank_0-1_10.ckpt", "a_rank_12-1_10.ckpt", "ckpt_strategy_rank_0.ckpt")
    assert {rank: [*steps.values()] for rank, steps in found.names.items()} == {
        0: [["a_rank_0-1_10.ckpt"]],
        12: [["a_rank_12-1_10.ckpt"]],
    }
    assert found.strategy() == tmp_path


@pytest.mark.parametrize("place", ["", "strategy/", "../strategy/"])
def test_where_the_strategy_is_looked_for(make, place):
    root = make(*named("-1_10.ckpt", folder="out/checkpoint/"), f"out/checkpoint/{place}ckpt_strategy_rank_0.ckpt")
    found = rank_folders.find(root / "out/checkpoint")
    assert found.strategy().resolve() == (root / "out/checkpoint" / place).resolve()


@pytest.mark.parametrize(
    "names",
    [
        ["rank_8/adapter_model.safetensors", "rank_16/adapter_model.safetensors"],
        ["rank_0/model-00001-of-00002.safetensors", "rank_1/model-00001-of-00002.safetensors"],
        ["rank_0/meta.json", "rank_1/meta.json"],
        ["rank_0/.hidden.ckpt", "rank_1/.hidden.ckpt"],
        ["rank_0/tiny.ckpt.tmp"],
        ["model.safetensors", "rank_0/x.ckpt", "rank_1/x.ckpt"],
        ["model.safetensors", *named("-1_10.ckpt")],
        ["a_rank_0-1_10.ckpt"],
        ["rank_one/x.ckpt", "rank_/x.ckpt", "rank_-1/x.ckpt", "rank_0x/x.ckpt", "xrank_0/x.ckpt"],
        # Nobody pads numbers, and there are no such ranks.
        ["rank_00/x.ckpt", "rank_01/x.ckpt"],
        ["rank_٣/x.ckpt", "rank_٤/x.ckpt"],
        ["rank_10000000/x.ckpt", f"rank_{'9' * 200}/x.ckpt"],
    ],
    ids=lambda names: names[0].replace("/", "-"),
)
def test_what_is_no_training(find, names):
    assert find(*names) is None


def test_a_folder_that_is_a_file_or_cannot_be_listed(find, monkeypatch, tmp_path):
    assert find("rank_0", "rank_1") is None
    assert rank_folders.find(tmp_path / "absent") is None


def test_the_newest_step_that_all_ranks_have(find):
    found = find(*named("-1_9.ckpt", "-1_10.ckpt", "-2_1.ckpt"), *named("-2_2.ckpt", ranks=(1,)))
    assert chosen(found) == ["rank_0/tiny_rank_0-2_1.ckpt", "rank_1/tiny_rank_1-2_1.ckpt"]
    assert [str(other) for other in rank_folders.choose(found, None).others] == ["1_9", "1_10", "2_2"]
    assert chosen(found, "2_2") == ["rank_1/tiny_rank_1-2_2.ckpt"]
    assert chosen(found, "9") == chosen(found, "1_9") == ["rank_0/tiny_rank_0-1_9.ckpt", "rank_1/tiny_rank_1-1_9.ckpt"]


def test_every_step_that_is_listed_can_be_chosen(find):
    """Runs that were started again, what was saved as training failed, and parts of the parameters."""
    kinds = ["-1_10", "_1-1_10", "_2-1_10", "-1_10_breakpoint", "-network-1_10", "-trainable_params-1_10", "-network"]
    found = find(*named(*(f"{kind}.ckpt" for kind in kinds)))
    assert chosen(found)[0] == "rank_0/tiny_rank_0_2-1_10.ckpt"
    first = rank_folders.choose(found, None)
    assert {chosen(found, str(saved))[0] for saved in (first.saved, *first.others)} == {
        f"rank_0/tiny_rank_0{kind}.ckpt" for kind in kinds
    }


def test_the_whole_model_is_chosen_before_parts_of_it(find):
    steps = [f"-{what}{step}.ckpt" for what in ("trainable_params-", "network-", "") for step in ("1_10", "1_20")]
    assert chosen(find(*named(*steps)))[0] == "rank_0/tiny_rank_0-1_20.ckpt"
    assert chosen(find(*named("-trainable_params-1_30.ckpt")))[0] == "rank_0/tiny_rank_0-1_20.ckpt"
    assert chosen(find(*named("-network-1_30.ckpt")))[0] == "rank_0/tiny_rank_0-network-1_30.ckpt"


def test_no_step_of_all_ranks(find):
    found = find(*named("-1_10.ckpt", ranks=(0,)), *named("-1_20.ckpt", ranks=(1,)))
    with pytest.raises(SourceError) as caught:
        rank_folders.choose(found, None)
    assert "no step was saved by all ranks: rank 0 has 1_10, rank 1 has 1_20" in text_of(caught.value)


def test_steps_that_are_not_there_or_not_clear(find):
    found = find(*named("-1_10.ckpt", "-2_10.ckpt"))
    with pytest.raises(UsageError, match="holds no step 3; there are: 1_10, 2_10"):
        rank_folders.choose(found, "3")
    with pytest.raises(
        UsageError, match=r'step=10 may be 1_10, 2_10\nhint: name the epoch too, such as step="[12]_10"'
    ):
        rank_folders.choose(found, "10")


def test_two_files_of_one_step(find):
    found = find(*named("-1_10.ckpt", "-1_10.safetensors"))
    with pytest.raises(SourceError, match=r"2 files of rank 0 of one step: rank_0/tiny_rank_0-1_10.ckpt, rank_0/tiny"):
        rank_folders.choose(found, None)


def test_names_without_a_step(find):
    assert chosen(find("rank_0/checkpoint_0.ckpt", "rank_1/checkpoint_1.ckpt")) == [
        "rank_0/checkpoint_0.ckpt",
        "rank_1/checkpoint_1.ckpt",
    ]
