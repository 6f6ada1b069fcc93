"""What is fixed, and at what?

- `schemes`: rules that pick the masks
- `rigid`: masks that leave no symmetry; `search` finds small ones
- `values`: what the fixed weights are set to
"""

from ..base.lazy import exports

__getattr__, __all__ = exports(
    __name__,
    {
        "schemes": ["Heavy", "Light", "Random", "SymmetryWarning", "Unmasked", "fixed_count", "make_masks"],
        "rigid": ["InputOffsets", "Rigid"],
        "values": [
            "MAP",
            "Constant",
            "FixedValues",
            "Given",
            "Ladder",
            "Point",
            "RandomConstant",
            "Zero",
            "make_values",
        ],
    },
)
