"""From sealed outputs to published ones, or all back: the plan (pure), the commit, the barriers."""
