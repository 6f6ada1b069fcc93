"""Schemes on connections: kernels, gates, positions behind a flattening."""

import pytest
import torch
from network.networks import build, example
from torch import nn

import pyro_sps as sps
from pyro_sps.masks.schemes import SymmetryWarning
from pyro_sps.symmetry.certificate import certify

pytestmark = pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")


def small():
    return sps.Topology.of(
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), torch.zeros(2, 2, 3, 3)
    )


def test_light_fixes_whole_kernels_and_all_positions():
    masks = sps.Light()(small())
    fixed = ~masks["0.weight"]
    assert fixed[0, 0].all()  # rank 0 of two: the last one of a block stays
    assert fixed.sum() == 4
    last = (~masks["3.weight"]).reshape(2, 3, 4)  # outputs, channels, positions; the block is at the bottom
    assert last[1, 2].all()
    assert last.sum() == 4
    assert masks["0.bias"].all()


def test_heavy_fixes_a_triangle_of_kernels():
    topology = sps.Topology.of(
        nn.Sequential(nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 1)), torch.zeros(2, 3, 3, 3)
    )
    fixed = (~sps.Heavy()(topology)["0.weight"]).all((2, 3))
    assert torch.equal(fixed, torch.ones(3, 3, dtype=torch.bool).tril(-1))


def test_light_fixes_all_gates_of_a_recurrent_connection():
    topology = sps.Topology.of(build("lstm"), example("lstm"))
    fixed = (~sps.Light()(topology)["cell.weight_hh_l0"]).reshape(4, 4, 4)  # gates, units, units
    assert (fixed == fixed[:1]).all()
    assert fixed[0].sum() == 3


def test_fully_connected_units_are_counted_by_connections():
    topology = small()
    masks = topology.check_masks({})
    masks["0.weight"][1, 0, 0, 1] = False
    assert topology.fully_connected(masks) == {"layer 1": 2}
    masks["3.weight"][0, 11] = False  # the last position of channel 2
    assert topology.fully_connected(masks) == {"layer 1": 1}


RIGID = ["conv, flatten", "circular", "residual, group norm", "u-net", "lstm", "gru", "small vit"]


@pytest.mark.parametrize("entries", ["one", "connection"])
@pytest.mark.parametrize(
    "name", ["conv, flatten", "circular", "residual, group norm", "u-net", "lstm", "gru", "small vit"]
)
def test_rigid_leaves_no_permutation(name, entries):
    topology = sps.Topology.of(build(name), example(name))
    masks = sps.Rigid(entries=entries)(topology)
    assert certify(topology, masks).permutations.is_rigid
    for joint in topology.joints if entries == "connection" else ():
        none = torch.zeros([topology.groups[g].size for g in joint.groups], dtype=torch.bool)
        for row, column in [(0, 0), (1, 0), (0, 1)]:
            if row < none.shape[0] and column < none.shape[1]:
                one = none.clone()
                one[row, column] = True
                kernel = masks[joint.tensor][topology.entries_of(joint, one)]
                assert kernel.all() or not kernel.any()


def test_entries_must_be_known():
    with pytest.raises(ValueError, match="entries must be 'one' or 'connection'"):
        sps.Rigid(entries="all")


def test_a_light_mask_that_leaves_units_alike_warns():
    with pytest.warns(SymmetryWarning, match="layer 1"):
        sps.Light()(
            sps.Topology.of(nn.Sequential(nn.Conv1d(1, 6, 1), nn.ReLU(), nn.Conv1d(6, 1, 1)), torch.zeros(2, 1, 3))
        )
