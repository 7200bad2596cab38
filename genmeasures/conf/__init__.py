"""Hydra configs (``pkg://genmeasures.conf``): one YAML file per component, and the experiments."""
