"""Completed jobs held to the fidelity that their rows ask for."""
