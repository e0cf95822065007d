"""The networks that ``archir new`` offers, as data."""
