"""The papers' experiments: their tables, trained again and set beside what was published."""
