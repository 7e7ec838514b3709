"""Bricks of networks that take plain numbers: norms, rotation, attention, caches, MLPs."""
