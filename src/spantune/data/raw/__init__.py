"""Documents as files state them, and the parts of reading and writing that several formats share."""
