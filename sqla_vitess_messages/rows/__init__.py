"""What happens to a message's row: enqueued, leased, settled, counted."""
