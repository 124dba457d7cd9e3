"""Messages that are enqueued at the times of a schedule, once each, by any of many processes."""
