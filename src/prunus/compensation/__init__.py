"""New values for the kept weights (and the bias) that make up for the removed ones."""
