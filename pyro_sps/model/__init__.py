"""The Pyro model.

- `partial`: partially stochastic weights
- `priors`, `hierarchy`: their priors
- `weights`, `fixing`: sampled and fixed entries put together; what is fixed, and at what
- `likelihoods`: how targets scatter around the network's outputs
- `bnn`: the model made of these
- `guides`: a mean-field guide of it
- `density`: the model as a pure function: terms of the ELBO, log joint
"""

from ..base.lazy import exports

__getattr__, __all__ = exports(
    __name__,
    {
        "bnn": ["BNN"],
        "partial": ["FixWeights", "PartialWeight"],
        "priors": ["OrderedNormal"],
        "hierarchy": ["Hierarchical"],
        "likelihoods": [
            "Bernoulli",
            "Categorical",
            "Gaussian",
            "HeteroscedasticGaussian",
            "HeteroscedasticStudentT",
            "Likelihood",
            "Ordinal",
            "Poisson",
            "StudentT",
        ],
        "guides": ["AutoSPSNormal"],
    },
)
