"""What ships: checkpoints, exports, model cards, the Hub."""
