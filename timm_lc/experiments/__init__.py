"""The paper's experiments: the CIFAR trainer and its data."""
