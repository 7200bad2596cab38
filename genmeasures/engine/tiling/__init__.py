"""Tiles: inputs too large for the memory, run through a model part by part."""
