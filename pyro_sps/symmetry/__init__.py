"""Which symmetries are left?

- `certificate`: counts them exactly
- `automorphisms`: the automorphism groups of coloured graphs, by which it counts, in steps: `refinement`, `bliss`
- `entries`: fixed weights as entries between units, signs and slots
- `verify`: tries what a topology claims on numbers
- `report`: what it says, and a check of that on numbers
- `table`: what each scheme leaves
"""

from ..base.lazy import exports

# The search for automorphisms runs in processes that need no torch.
__getattr__, __all__ = exports(
    __name__,
    {
        "certificate": ["certify", "warn_of_symmetries"],
        "report": ["Move", "SymmetryClass", "SymmetryReport", "Verification", "check_moves"],
        "table": ["scheme_table"],
    },
)
