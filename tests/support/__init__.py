"""Equipment that several test files, or tests and drills, share."""
