"""`hga batch`: one task over many files, with a journal so that a killed run goes on."""
