"""The tasks of the competition "Predicting Generalization in Deep Learning" (PGDL, NeurIPS 2020)."""

from genmeasures.tasks.pgdl.task import PGDL

__all__ = ["PGDL"]
