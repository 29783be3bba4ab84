"""Surgery: the masked model, and the smaller one that equals it."""
