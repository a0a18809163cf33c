"""Parameter names of other projects, and ours."""
