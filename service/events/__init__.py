"""What happened, in one order: lists, long polls and streams of events that can be followed without a gap."""
