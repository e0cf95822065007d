"""The rules of this package: its `.rule` files."""
