//! What this machine has, and why it lacks the rest.
