"""Hydra configs of the plugin (``pkg://genmeasures_pgdl.conf``): the task and the experiment."""
