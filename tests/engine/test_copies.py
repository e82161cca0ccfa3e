"""streamconv.engine.copies: copies of slices compared, in little memory, and the first difference found."""

import pytest

from streamconv.engine.budget import Budget
from streamconv.engine.copies import check_copies
from streamconv.errors import VerificationError
from streamconv.ranks.opening import open_checkpoint
from streamconv.storage.access import Access
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.trainings import Cut, Stage, Tensor, Training, write_ranks, write_strategies

REGIONS = [128, 1000, 1 << 20]


@pytest.fixture
def training():
    specs = [TensorSpec("wq", dtypes.BF16, (60, 40)), TensorSpec("wo", dtypes.F32, (60, 40))]
    specs += [TensorSpec("norm", dtypes.F32, (40,)), TensorSpec("empty", dtypes.F32, (0, 2))]
    cuts = {"wq": ((0,), ()), "wo": ((), (0,)), "norm": ((),), "empty": ((), (0,))}
    stage = Stage({name: Cut((3, 2), axes) for name, axes in cuts.items()})
    return Training({spec.name: Tensor.of(spec) for spec in specs}, [stage], (3, 2))


@pytest.fixture(params=[1, 3])
def compare(request, training, tmp_path):
    workers = request.param

    def run(held, region, progress=None):
        write_ranks(tmp_path, held, "t_rank_{rank}-1_1.safetensors")
        write_strategies(tmp_path, training)
        refs = open_checkpoint(tmp_path).values()
        return check_copies(refs, Budget(1 << 30, 1 << 20, workers, region), Access.READ, progress)

    return run


@pytest.mark.parametrize("region", REGIONS)
def test_all_copies_are_compared(training, compare, region):
    seen = []
    done = compare(training.all_held(), region, seen.append)
    assert done == 2 * (60 * 40 * 2 + 60 * 40 * 4) + 5 * 40 * 4
    assert (seen[-1].done, seen[-1].total) == (done, done)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(("name", "rank", "kept"), [("wq", 2, 0), ("wq", 5, 1), ("wo", 3, 1), ("norm", 5, 0)])
@pytest.mark.parametrize("at", [0, 7, -1])
def test_the_first_byte_that_differs_is_named(training, compare, name, rank, kept, at, region):
    held = training.all_held()
    bits = held[rank][name].bits.copy()
    flat = bits.reshape(-1)
    flat[at] += 1
    held[rank][name] = Tensor(held[rank][name].dtype, bits)
    with pytest.raises(VerificationError) as caught:
        compare(held, region)
    offset = (at % flat.size) * bits.itemsize
    said = f"the copies of {name} in ranks {kept} and {rank} differ, first at byte {offset} of the slice: byte "
    assert said in str(caught.value)
    assert f"rank_{kept}/" in str(caught.value)
    assert f"rank_{rank}/" in str(caught.value)


def test_nothing_to_compare(training, compare):
    alone = training.without_copies(min)
    assert compare({rank: held for rank, held in alone.items() if held}, 1000) == 0
