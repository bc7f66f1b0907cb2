"""What runs have come to: their comparison, pictures of it, and the report in a run folder."""
