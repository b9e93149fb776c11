"""Simulated brain tissue with known cells."""
