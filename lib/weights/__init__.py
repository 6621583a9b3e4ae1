"""Reading, recognising and loading checkpoints without executing anything in them."""
