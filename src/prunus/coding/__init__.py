"""Entropy coding of sparse matrices: whole numbers in, bytes out; NumPy alone."""
