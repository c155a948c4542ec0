"""The commands of `timm-lc`, one a file."""
