"""What a queue's table is: its options, columns, keys and indexes."""
