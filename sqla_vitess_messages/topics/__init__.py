"""Topics: a payload that several queues have in common, and events that are published to them."""
