"""What a tensor is, without a byte of it: dtypes, references to bytes on disk, grids of elements, lazy views."""
