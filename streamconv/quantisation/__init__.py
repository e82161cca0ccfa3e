"""How weights are quantised: one table for each method, and the language that the tables are written in."""
