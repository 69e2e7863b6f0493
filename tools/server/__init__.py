"""`hga serve`: one model behind an OpenAI-compatible HTTP interface."""
