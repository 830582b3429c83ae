"""What is written ahead, and how a session comes back from it."""
