"""Pure decisions of the monitor: no await, no clock, no I/O. Time enters as `now` (monotonic seconds)."""
