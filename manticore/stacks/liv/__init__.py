"""Linear input-varying operators: maps whose weights are made from the input, by what they mix and how."""
