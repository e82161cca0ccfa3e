"""Catalog, family and options to a plan: names, shapes and dtypes only, every source tensor accounted for."""
