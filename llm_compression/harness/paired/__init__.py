"""Two revisions to a verdict: child processes, statistics, worktrees, history and report; knows no encoder."""
