"""Hashes of what values depend on: models, data, components and versions; the same in every process."""

from genmeasures.identity.identity import (
    ModelIdentity,
    Unidentified,
    component_identity,
    data_identity,
    has_address,
    model_identity,
    versions_identity,
)

__all__ = [
    "ModelIdentity",
    "Unidentified",
    "component_identity",
    "data_identity",
    "has_address",
    "model_identity",
    "versions_identity",
]
