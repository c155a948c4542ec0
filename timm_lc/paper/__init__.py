"""The paper's figures and tables: their runs, measures and pages."""
