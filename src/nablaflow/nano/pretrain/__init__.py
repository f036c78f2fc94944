"""``python -m nablaflow.nano.pretrain`` rebuilds the embedded model from scratch."""
