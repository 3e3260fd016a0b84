"""The papers' experiments: their tables, trained again beside what was published, and studies."""
