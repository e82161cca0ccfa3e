"""streamconv.ranks.opening: what a path is taken for, and everything that takes such a path."""

import json
import math
import shutil

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
import pytest

import streamconv
from streamconv import conversion
from streamconv.engine.budget import Budget
from streamconv.errors import SourceChangedError, SourceError, UsageError
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, running
from support.helpers import LLAMA
from support.trainings import Cut, Stage, Tensor, Training, write_file, write_iteration, write_ranks, write_strategies


def tensor(name, shape, dtype="BF16"):
    return Tensor.of(TensorSpec(name, dtypes.from_safetensors(dtype, name), shape))


@pytest.fixture
def training():
    tensors = {"wq": tensor("wq", (60, 40)), "wo": tensor("wo", (60, 40)), "norm": tensor("norm", (40,))}
    cuts = {"wq": Cut((2, 2), ((0,), ())), "wo": Cut((2, 2), ((), (0,))), "norm": Cut((2, 2), ((),))}
    return Training(tensors, [Stage(cuts)], (2, 2))


@pytest.fixture
def output(training, tmp_path):
    write_ranks(tmp_path / "output", training.all_held())
    write_strategies(tmp_path / "output", training)
    return tmp_path / "output"


@pytest.mark.parametrize("words", [{"step": "1_10"}, {"strategy": "strategy"}])
def test_words_that_have_no_effect_are_refused(output, tmp_path, words):
    write_file(tmp_path / "whole/model.safetensors", {"w": tensor("w", (2,))})
    for path in (tmp_path / "whole", tmp_path / "whole/model.safetensors"):
        with pytest.raises(UsageError, match=f"{next(iter(words))} has no effect on .*\nhint: omit"):
            streamconv.open(path, **words)


def test_a_strategy_has_no_effect_on_an_iteration(training, tmp_path):
    write_iteration(tmp_path, training, training.all_held())
    with pytest.raises(UsageError, match="strategy has no effect"):
        streamconv.open(tmp_path, strategy=tmp_path)
    assert len(streamconv.open(tmp_path, step=10)) == 3


def test_a_strategy_that_is_missing_or_none(output):
    with pytest.raises(SourceError, match=r"cannot open .*nothing"):
        streamconv.open(output, strategy=output / "nothing")
    with pytest.raises(SourceError, match="holds no strategy file of MindSpore"):
        streamconv.open(output, strategy=output / "checkpoint/rank_0")


@pytest.mark.parametrize("at", ["checkpoint/rank_0", "checkpoint/rank_3/tiny_rank_3-1_10.ckpt"])
def test_one_rank_alone_is_no_model(output, at):
    with pytest.raises(streamconv.UnsupportedError, match=r"of rank [03].*\nhint: give .*/checkpoint"):
        streamconv.open(output / at)


def test_experiments_stay_what_they_were(tmp_path):
    for rank in (8, 16):
        write_file(tmp_path / f"rank_{rank}/adapter_model.safetensors", {"x": tensor("x", (2,))})
    with pytest.raises(SourceError, match="holds no weights itself; they are in rank_16, rank_8"):
        streamconv.open(tmp_path)
    assert [*streamconv.open(tmp_path / "rank_8")] == ["x"]


INDICES = [
    np.s_[...],
    np.s_[5:50, 7],
    np.s_[::-7, 19:22],
    np.s_[29:31],
    np.s_[-1],
    np.s_[..., -1],
    np.s_[3, 3],
    np.s_[:0],
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_any_part_of_a_tensor_is_what_numpy_gives(output, training, index):
    with streamconv.open(output) as found:
        for name in ("wq", "wo"):
            expected = training.tensors[name].bits.view("bfloat16")[index]
            assert found[name][index].tobytes() == expected.tobytes()
            assert found[name][index].shape == expected.shape


@pytest.mark.slow
def test_inspect(output):
    ended = running.run("inspect", output)
    assert "wq  BF16  [60, 40]  4800  2 slices [2, 1] of [30, 40], each in 2 ranks" in ended.out
    assert "norm  BF16  [40]  80  whole in 4 ranks" in ended.out
    assert "4 ranks in checkpoint, step 1_10; cut as 4 files in" in ended.out
    said = json.loads(running.run("inspect", output, "--json", "--step", "10", "--strategy", output / "strategy").out)
    (wo,) = (one for one in said["tensors"] if one["name"] == "wo")
    assert wo["slices"] == {"divisions": [1, 2], "shape": [60, 20], "ranks": [[0, 2], [1, 3]]}
    assert [file for file, _, _ in wo["extents"]] == [f"checkpoint/rank_{r}/tiny_rank_{r}-1_10.ckpt" for r in (0, 1)]
    refused = running.run("inspect", output, "--step", "11")
    assert (refused.code, "holds no step 11; there are: 1_10" in refused.err) == (2, True)


def flipped(tensors):
    return {name: Tensor(one.dtype, one.bits ^ 1) for name, one in tensors.items()}


@pytest.mark.slow
def test_diff_and_verify_with_the_merged_result(output, training, tmp_path):
    streamconv.convert(output, tmp_path / "merged", model="raw")
    assert streamconv.diff(output, tmp_path / "merged").same
    streamconv.verify(tmp_path / "merged", source=output)
    # Of another step the same names hold other values.
    write_ranks(output, {rank: flipped(training.held(rank)) for rank in range(4)}, "tiny_rank_{rank}-1_20.ckpt")
    assert running.run("verify", output, tmp_path / "merged").code == 7
    assert running.run("verify", output, tmp_path / "merged", "--step", "10").code == 0
    (output / "strategy").rename(tmp_path / "strategy")
    words = ("--step", "10", "--strategy", tmp_path / "strategy")
    assert running.run("verify", output, tmp_path / "merged", *words).code == 0
    (tmp_path / "strategy").rename(output / "strategy")
    (held,) = (tmp_path / "merged").glob("*.safetensors")
    data = bytearray(held.read_bytes())
    data[-1] ^= 1
    held.write_bytes(data)
    assert not streamconv.diff(output, tmp_path / "merged").same


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_an_interrupted_run_resumes(output, tmp_path, after):
    streamconv.convert(output, tmp_path / "one", model="raw")
    assert not running.converted(output, tmp_path / "other", after, 200, 2, model="raw")
    streamconv.convert(output, tmp_path / "other", model="raw")
    assert running.tree(tmp_path / "one") == running.tree(tmp_path / "other")


def test_a_rank_file_that_is_replaced_during_the_run(output, training, tmp_path):
    planned = streamconv.plan(output, tmp_path / "out", model="raw")
    path = output / "checkpoint/rank_1/tiny_rank_1-1_10.ckpt"
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    with pytest.raises(SourceChangedError, match=r"rank_1-1_10.ckpt"):
        planned.run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("axes", [((0,), ()), ((), (0,))], ids=["first axis", "last axis"])
@pytest.mark.parametrize("region", [1 << 20, 64 << 10])
def test_every_byte_is_read_once(tmp_path, axes, region, monkeypatch):
    monkeypatch.setattr(conversion, "decide_budget", lambda *_: Budget(1 << 30, 1 << 20, 2, region))
    whole = {"w": tensor("w", (512, 2048))}
    training = Training(whole, [Stage({"w": Cut((4,), axes)})], (4,))
    write_ranks(tmp_path / "output", training.all_held())
    write_strategies(tmp_path / "output", training)
    for number, words in enumerate(({}, {"dtype": "fp32"})):
        report = streamconv.convert(tmp_path / "output", tmp_path / f"out{number}", model="raw", **words)
        assert report.read_bytes <= 1.05 * whole["w"].bits.nbytes
    assert golden.found(tmp_path / "out0")["w"] == golden.found(write_file(tmp_path / "whole.ckpt", whole))["w"]


@pytest.mark.parametrize("axes", [((0,), ()), ((), (0,)), ((1,), (0,))], ids=["rows", "columns", "both"])
def test_fp8_in_slices(tmp_path, axes):
    """Weights and scales in slices give what whole ones give."""
    tensors = {
        "q_proj.weight": tensor("q_proj.weight", (256, 512), "F8_E4M3"),
        "q_proj.weight_scale_inv": tensor("q_proj.weight_scale_inv", (2, 4), "F32"),
    }
    devices = (2,) * max(1, sum(map(len, axes)))
    training = Training(tensors, [Stage({name: Cut(devices, axes) for name in tensors})], devices)
    assert training.world == math.prod(devices)
    write_ranks(tmp_path / "output", training.all_held(), "t_rank_{rank}-1_1.safetensors")
    write_strategies(tmp_path / "output", training)
    write_file(tmp_path / "whole.safetensors", tensors)
    for source in ("output", "whole.safetensors"):
        streamconv.convert(tmp_path / source, tmp_path / f"{source}.out", model="raw", dtype="bf16")
    assert running.tree(tmp_path / "output.out") == running.tree(tmp_path / "whole.safetensors.out")


def test_an_adapter_of_its_own_folder(tmp_path):
    """What is trained with LoRA is saved apart, as slices too."""
    names = [f"model.layers.{i}.attention.wq.mindpet_delta_lora_{part}" for i in range(2) for part in "ab"]
    tensors = {name: tensor(name, (4, 20) if name.endswith("a") else (24, 4)) for name in names}
    cuts = {name: Cut((2,), ((), (0,)) if name.endswith("a") else ((0,), ())) for name in names}
    training = Training(tensors, [Stage(cuts)], (2,))
    ending = "llama_rank_{rank}-trainable_params-1_10.safetensors"
    write_ranks(tmp_path / "output", training.all_held(), ending, "checkpoint_trainable")
    write_strategies(tmp_path / "output", training)
    write_file(tmp_path / "whole.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = {"model": "llama", "reverse": True, "options": {"lora_alpha": 8, "is_lora": True}}
    for source in ("output", "whole.safetensors"):
        streamconv.convert(tmp_path / source, tmp_path / f"{source}.out", config=tmp_path / "config.json", **words)
    assert running.tree(tmp_path / "output.out") == running.tree(tmp_path / "whole.safetensors.out")
    assert "adapter_config.json" in {path.name for path in (tmp_path / "output.out").iterdir()}
