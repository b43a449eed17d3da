"""Hostile inputs, made by a seed: pictures, manifests and requests that are broken or malicious in many ways."""
