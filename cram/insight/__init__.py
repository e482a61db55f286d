"""Looking at runs and at runs to come: ablations, the planner, the profiler, comparisons, the league."""
