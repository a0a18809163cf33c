"""The mesh of processes, collectives, and how weights are sharded."""
