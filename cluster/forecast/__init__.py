"""When a catalog would be done, what it would cost, and what a card can render: pure, before anything runs."""
