"""From a wish, "a tenth of the parameters", to the strength that grants it and the network."""
