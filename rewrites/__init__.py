"""The rule library of archir."""
