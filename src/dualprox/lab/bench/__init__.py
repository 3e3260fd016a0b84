"""`dualprox bench`: one module per question, and what they share."""
