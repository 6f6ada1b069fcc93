"""What is a network? Its units, the weight tensors between them, and how it runs with given weights.

- `topology`: unit groups and weight tensors (`units`), all that the other wings know of a network
- `structure`: what a topology has beyond one number a unit: slots, blocks, several signs
- `trace`: from a network to its topology and to a function of its weights; `tracer` walks the graph, if all is dense
- `record`: the same of any network, from one run of it; `recorder` follows its numbers, of which `elements` keeps the
  book, and `assemble` makes the topology
- `mixtures`: units that linear maps may mix, which `mixing` finds
- `inputs`: what a network is called with; several inputs side by side in one tensor
- `layers`: what each operation does to units and signs, one room a family of operations
- `run`: that function, which other processes can be sent
- `probe`: what tells networks of the same shapes apart; `select`: which parameters somebody means
- `build`, `architectures`: networks that are often wanted
"""

from .build import ACTIVATIONS, mlp
from .run import NetworkFunction
from .topology import SUPPORTED, Masks, Topology, UnsupportedLayerError
from .trace import trace
from .units import UnitGroup, WeightTensor

__all__ = [
    "ACTIVATIONS",
    "SUPPORTED",
    "Masks",
    "NetworkFunction",
    "Topology",
    "UnitGroup",
    "UnsupportedLayerError",
    "WeightTensor",
    "mlp",
    "trace",
]
