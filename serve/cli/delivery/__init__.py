"""Options on deliveries, and the writer that makes them beside a batch's clips."""
