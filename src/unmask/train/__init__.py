"""From a recipe to weights: the loop, its optimisers, its checkpoints."""
