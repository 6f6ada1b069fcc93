"""What comes out of inference.

- `fit`: a fitted mean-field posterior, and several of them
- `samples`: draws of a sampler
- `predict`: predictions of both; `outputs` runs the networks
- `save`, `load`: on disk
"""

from ..base.lazy import exports

__getattr__, __all__ = exports(
    __name__,
    {
        "fit": ["Fit", "Fits", "NonFiniteLossError"],
        "samples": ["Samples"],
        "outputs": ["Member"],
        "predict": ["Prediction"],
        "save": ["save"],
        "load": ["load"],
    },
)
