"""Thin handlers: parse, ask, answer."""
