"""Hashes of models, data, components and versions, equal in every process."""

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
