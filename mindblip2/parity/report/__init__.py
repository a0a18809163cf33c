"""Reports: terminal table, JSON, Markdown, HTML page, msprobe dump."""
