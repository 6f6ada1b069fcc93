"""Observation models: how targets scatter around the network's outputs.

A likelihood is a `PyroModule` from outputs of shape B + (rows, outputs) to a distribution over targets with batch
shape B + (rows,). `elementwise` is the same without joining the outputs of a row, for scores per output.

What a likelihood learns (a scale of noise, cut points) is a parameter of the model, optimised with the ELBO. Samplers
make it a sample site with a prior by setting `sampled`; see `Likelihood`.
"""

from .base import Latent, Likelihood
from .discrete import Bernoulli, Categorical, Poisson
from .noise import Gaussian, HeteroscedasticGaussian, HeteroscedasticStudentT, StudentT
from .ordinal import Ordinal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.__name__: cls
    for cls in (
        Gaussian,
        HeteroscedasticGaussian,
        HeteroscedasticStudentT,
        StudentT,
        Categorical,
        Ordinal,
        Bernoulli,
        Poisson,
    )
}

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "HeteroscedasticStudentT",
    "Latent",
    "Likelihood",
    "Ordinal",
    "Poisson",
    "StudentT",
]
