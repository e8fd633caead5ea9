"""Log evidence and its bounds, per observation and in nats, with standard errors."""
