"""What follows from the facts of one host: each rule a function of its `Seen`, without a side effect."""
