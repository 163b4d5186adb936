"""Other libraries doing the work over bare data, each in the way its own documentation shows."""
