"""Strings to ids and back, and templates with holes."""
