"""What a user would pick instead of this project, each set up as its own documentation says."""
