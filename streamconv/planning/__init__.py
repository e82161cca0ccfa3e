"""Catalog, family and options to a tensor mapping: names, shapes and dtypes only, every source tensor accounted for."""
