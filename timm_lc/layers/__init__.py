"""Convolutions whose filters never learn, and the LC-Block."""
