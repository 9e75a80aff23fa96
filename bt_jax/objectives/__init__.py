"""Methods of self-supervised learning, one in each file, and the functions that they share."""
