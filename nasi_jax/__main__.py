"""`python -m nasi_jax`, the same as the command `nasi`."""

from nasi_jax.cli import main

main()
