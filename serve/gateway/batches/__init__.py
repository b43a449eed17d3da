"""Batches as clients hand them in and take them home: JSON, manifests of every kind, tables and archives of results."""
