"""Drawings and rank correlations, each imported from its file: drawings load matplotlib."""
