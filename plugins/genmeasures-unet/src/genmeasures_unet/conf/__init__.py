"""Hydra config groups of this plugin."""
