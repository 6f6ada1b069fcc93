"""How a posterior is found.

- `distributed`: one fit on several processes; `cluster`: replicas on several machines
- `optimizers`: Adam and IVON; `step`: one optimisation step as one recorded program
- `loop`: steps of all replicas, with progress, interruption and checkpoints
- `variational`: `fit` and `map_estimate`; `job` (a fit is prepared, runs, is collected), `members`, `settings`,
  `warm_start`, `validation` and `maximum` are their parts
- `checkpoint`, `resume`: going on with a fit or with sampling
- `sampling`: `sample`; `langevin` (the dynamics), `chains` (their run) and `starts` are its parts
- `elbo`: the objective for stock `SVI`
- `nuts`: the no-U-turn sampler
"""

from ..base.lazy import exports

__getattr__, __all__ = exports(
    __name__,
    {
        "variational": ["fit", "map_estimate"],
        "resume": ["resume"],
        "elbo": ["MeanFieldELBO"],
        "sampling": ["sample"],
    },
)
