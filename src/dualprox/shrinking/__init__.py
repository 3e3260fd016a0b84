"""From structure to a network that is smaller, and what that saves."""
