"""Bayesian neural networks without redundant posterior modes, for Pyro."""
