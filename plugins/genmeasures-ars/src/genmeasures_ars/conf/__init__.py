"""The packaged Hydra config groups (``pkg://genmeasures_ars.conf``): one YAML for each measure."""
