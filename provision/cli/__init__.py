"""The command line: parses, prints, exits. Nothing below it does."""
