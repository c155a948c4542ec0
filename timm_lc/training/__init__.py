"""The paper's CIFAR training (appendix C), useful without the paper."""
