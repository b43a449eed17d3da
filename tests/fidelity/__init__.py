"""Clips with faults that were made on purpose, and good ones: what measures of fidelity are judged by."""
