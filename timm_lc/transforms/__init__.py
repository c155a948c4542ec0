"""What changes a network: model in, model out."""
