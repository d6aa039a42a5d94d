"""The training of a network: recipes, augmentation, `init` and `step`."""
