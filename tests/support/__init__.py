"""Code that several test files or drills share."""
