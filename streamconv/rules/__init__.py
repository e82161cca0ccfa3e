"""The language that families are written in: sizes, name patterns, invertible transforms, statements."""
