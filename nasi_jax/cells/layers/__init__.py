"""The layers of cells: convolutions, operations, normalization, mixed operations."""
