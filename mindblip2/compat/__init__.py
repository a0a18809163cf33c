"""Names and habits of other projects: the only place that knows them."""
