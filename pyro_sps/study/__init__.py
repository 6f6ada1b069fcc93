"""Experiments: the paper's and ours. Each module is a program, `python -m pyro_sps.study.NAME`."""
