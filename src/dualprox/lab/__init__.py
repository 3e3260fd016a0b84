"""The lab: recipes, the training loop, reports and the command line; needs ``dualprox[lab]``."""
