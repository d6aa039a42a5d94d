"""A search small enough for a test."""

import shlex

from nasi_jax.config import SearchConfig

CONFIG = SearchConfig(
    ops=("skip_connect", "avg_pool_3x3"),
    norm="none",
    init_channels=2,
    num_cells=1,
    image_size=8,
    batch_size=4,
    steps=3,
    penalty=2.0,
    seed=2,
)

FLAGS = shlex.split(
    "search --ops skip_connect avg_pool_3x3 --norm none --init-channels 2 --num-cells 1 "
    "--image-size 8 --batch-size 4 --steps 3 --penalty 2 --seed 2"
)
"""The command line of `CONFIG`."""

TOY = shlex.split(
    "--space toy:Chains --norm none --init-channels 2 --num-cells 1 --image-size 8 --batch-size 4 "
    "--seed 2"
)
"""Of what compiles in a moment, for any command that compiles."""
