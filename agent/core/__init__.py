"""Pure decisions of the agent: no await, no clock, no I/O. Time enters as `now` (monotonic seconds)."""
