"""What programs, suites and parts share: workloads, yardsticks, processes, where results lie."""
