"""Modules that `module_source` fills in: one for each kind of genotype and framework.

Each stands alone, here already, so that what several of them need is in each of them. The values in
capitals after the imports are what is replaced, and to the docstring is added what was exported.
"""
