"""What receives messages, and the rooms that web and workers share. Never imports `workers`."""
