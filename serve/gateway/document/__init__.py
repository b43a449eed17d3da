"""What the API says of itself: its OpenAPI document with examples, and docs/api.md, which is written from that."""
