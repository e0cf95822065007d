"""Searching for architectures: strategies propose, evaluators score, the engine keeps the books.

Nothing here is imported by what lies above it. Modules that need torch say so.
"""
