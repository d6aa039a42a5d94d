"""Search spaces and the flax modules that they are made of."""

from nasi_jax.cells.darts import Darts, DartsGenotype
from nasi_jax.cells.genotype import evaluation_network, genotype_to_dict
from nasi_jax.cells.nasbench1shot1 import Nasbench1Shot1
from nasi_jax.cells.nasbench101 import Nasbench101Genotype
from nasi_jax.cells.nasbench201 import Nasbench201, Nasbench201Genotype
from nasi_jax.cells.spaces import (
    SEARCH_SPACES,
    families,
    genotype_from_dict,
    parse_genotype,
    search_space,
)
from nasi_jax.cells.transnas101 import Transnas101, Transnas101Genotype

__all__ = [
    "SEARCH_SPACES",
    "Darts",
    "DartsGenotype",
    "Nasbench1Shot1",
    "Nasbench101Genotype",
    "Nasbench201",
    "Nasbench201Genotype",
    "Transnas101",
    "Transnas101Genotype",
    "evaluation_network",
    "families",
    "genotype_from_dict",
    "genotype_to_dict",
    "parse_genotype",
    "search_space",
]
