"""What every benchmark shares: ``trial`` (a measured run), ``record`` (lines of JSON), ``table`` (Markdown)."""
