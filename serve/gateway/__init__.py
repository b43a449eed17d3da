"""The farm's HTTP API: routes, request bodies, views, errors, live events and metrics."""
