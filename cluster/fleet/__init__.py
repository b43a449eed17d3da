"""Cards, classes of cards, and pure functions of what is known of their state: order, failures, demand."""
