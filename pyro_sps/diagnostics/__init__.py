"""Is the approximation any good? ArviZ, importance sampling, convergence and predictive checks.

- `generations`: what differs between ArviZ 0.2x and 1.x; arrays only, no torch
- `density`: log joint and log guide densities of posterior draws
- `convert`: fits and Pyro's MCMC as `InferenceData` or `DataTree`
- `importance`, `convergence`, `predictive`: the checks, each with its numbers
- `diagnose`: all checks of a fit, and what they mean in words
- `page`: the same as a web page with figures
"""
