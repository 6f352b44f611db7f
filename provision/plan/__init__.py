"""Plans: what a bootstrap would do and why, kept in a file, and done exactly so or not at all."""
