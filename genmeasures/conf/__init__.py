"""The packaged Hydra config groups (``pkg://genmeasures.conf``): one YAML for each component."""
