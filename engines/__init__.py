"""Networks, their contract, and how they are made to run. The leaf of the import graph."""
